//! The screen: a model that messages change, and views that draw it. Pure but for [`terminal`]: frames and keys come in,
//! a buffer of cells and a few wishes ([`message::Effect`]) go out. [`crate::commands`] puts it between the source of
//! frames and the terminal.
//!
//! ```text
//! Frame, Key, Resize, Tick ─> update(model) ─> effects: copy, export, capture, seek, quit
//!                                model ─> view ─> cells ─> paint (what has changed) ─> bytes
//! ```
//!
//! A frame is never changed and never copied: the model keeps what it is given, and freezing is keeping it for longer.

pub mod history;
pub mod keys;
pub mod message;
pub mod model;
pub mod paint;
pub mod panes;
pub mod terminal;
pub mod text;
pub mod update;
pub mod view;

pub use message::{Effect, Key, Message};
pub use model::Model;
