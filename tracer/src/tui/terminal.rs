//! The terminal itself: its modes, its keys, its size. The only part of the screen that does I/O.

use super::message::{Key, Message};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::{Command, cursor, style, terminal};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether there is a terminal that a screen can be drawn on and that keys come from.
pub fn is_there() -> bool {
    let knows_how = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    knows_how && io::stdout().is_terminal() && io::stdin().is_terminal()
}

/// Whether colours are wanted (<https://no-color.org>).
pub fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns and lines; 80 x 24 where the terminal does not say.
pub fn size() -> (u16, u16) {
    match terminal::size() {
        Ok((columns, lines)) if columns > 0 && lines > 0 => (columns, lines),
        _ => (80, 24),
    }
}

/// Whether a screen has the terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Keys come one by one and are not shown; gives the bytes that take over the screen. A panic, on whichever thread, gives
/// the terminal back before it says anything: else nobody could read that.
pub fn enter() -> io::Result<Vec<u8>> {
    give_back_when_panicking();
    terminal::enable_raw_mode()?;
    TAKEN.store(true, Ordering::Release);
    let mut bytes = String::new();
    write(&mut bytes, terminal::EnterAlternateScreen);
    write(&mut bytes, cursor::Hide);
    Ok(bytes.into_bytes())
}

/// The terminal is as it was; gives the bytes that give the screen back, unless that was done already.
pub fn leave() -> Vec<u8> {
    if !TAKEN.swap(false, Ordering::AcqRel) {
        return Vec::new();
    }
    // There is nothing to be done where the terminal is gone.
    let _ = terminal::disable_raw_mode();
    let mut bytes = String::new();
    write(&mut bytes, style::SetAttribute(style::Attribute::Reset));
    write(&mut bytes, cursor::Show);
    write(&mut bytes, terminal::LeaveAlternateScreen);
    bytes.into_bytes()
}

fn give_back_when_panicking() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let bytes = leave();
            let mut stdout = io::stdout();
            if !bytes.is_empty() && takes_bytes(&stdout) {
                let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
            }
            before(info);
        }));
    });
}

/// Whether something can be written without waiting.
fn takes_bytes(stream: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd, which lives through the call; it does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLOUT != 0
}

fn write(to: &mut String, command: impl Command) {
    // Writing to memory does not fail.
    let _ = command.write_ansi(to);
}

/// The bytes that put a text into the clipboard of whoever looks, also through ssh (OSC 52).
pub fn copy(text: &str) -> Vec<u8> {
    let mut bytes = String::new();
    write(&mut bytes, crossterm::clipboard::CopyToClipboard::to_clipboard_from(text));
    bytes.into_bytes()
}

/// What the terminal tells within this time, if anything that matters.
pub fn next(within: Duration) -> io::Result<Option<Message>> {
    if !event::poll(within)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) => pressed(&key).map(Message::Key),
        Event::Resize(columns, lines) => Some(Message::Resize(columns, lines)),
        _ => None,
    })
}

fn pressed(event: &KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char(c) if control => Key::Control(c.to_ascii_lowercase()),
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::F(1) => Key::F1,
        _ => return None,
    })
}
