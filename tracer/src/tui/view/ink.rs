//! How a piece of text looks by what it means. The sixteen colours of the terminal's own palette and nothing about its
//! ground: marks bring their own. Without colours the same is told by weight and reversal, and the words say it anyway.

use crate::tui::text::Ink;
use ratatui::style::{Color, Modifier, Style};

/// Whether colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Palette {
    /// Whether they may.
    pub colours: bool,
}

impl Palette {
    /// How this looks.
    pub fn style(self, ink: Ink) -> Style {
        // What was there before shows through in nothing.
        let plain = Style::reset();
        let bold = plain.add_modifier(Modifier::BOLD);
        let coloured = |style: Style, colour: Color| if self.colours { style.fg(colour) } else { style };
        let mark = |fg: Color, bg: Color| match self.colours {
            true => bold.fg(fg).bg(bg),
            false => bold.add_modifier(Modifier::REVERSED),
        };
        match ink {
            Ink::Plain => plain,
            Ink::Dim => plain.add_modifier(Modifier::DIM),
            Ink::Bold => bold,
            Ink::Bad => coloured(bold, Color::Red),
            Ink::Warn => coloured(bold, Color::Magenta),
            Ink::Good => coloured(plain, Color::Green),
            Ink::Name => coloured(plain, Color::Cyan),
            // Black and white as the palette has them: readable on each of these grounds, whatever the terminal's is.
            Ink::BadMark => mark(Color::White, Color::Red),
            Ink::WarnMark => mark(Color::Black, Color::Yellow),
            Ink::GoodMark => mark(Color::Black, Color::Green),
            Ink::Mark => bold.add_modifier(Modifier::REVERSED),
        }
    }
}
