//! A screen as text: its characters, and below them how each cell looks.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use tracer::tui::Model;
use tracer::tui::view::{ink::Palette, view};
use unicode_width::UnicodeWidthStr;

/// Draws a model as large as its terminal.
pub fn drawn(model: &Model, colours: bool) -> Buffer {
    let area = Rect::new(0, 0, model.size.0, model.size.1);
    let mut buffer = Buffer::empty(area);
    view(model, Palette { colours }, area, &mut buffer);
    buffer
}

/// The characters, line by line.
pub fn text(buffer: &Buffer) -> Vec<String> {
    let area = *buffer.area();
    area.rows()
        .map(|row| {
            let mut line = String::new();
            let mut x = row.x;
            while x < row.right() {
                let symbol = buffer[(x, row.y)].symbol();
                line.push_str(symbol);
                x += (symbol.width() as u16).max(1);
            }
            line.trim_end().to_owned()
        })
        .collect()
}

/// How the cells look: a letter for each, blank for plain ones.
fn looks(buffer: &Buffer) -> Vec<String> {
    let letter = |x, y| {
        let cell = &buffer[(x, y)];
        let has = |modifier| cell.modifier.contains(modifier);
        match (cell.fg, cell.bg) {
            (Color::Reset, Color::Reset) if has(Modifier::REVERSED) => '#',
            (Color::Reset, Color::Reset) if has(Modifier::UNDERLINED) => '_',
            (Color::Reset, Color::Reset) if has(Modifier::BOLD) => 'b',
            (Color::Reset, Color::Reset) if has(Modifier::DIM) => '.',
            (Color::Reset, Color::Reset) => ' ',
            (Color::Red, Color::Reset) => 'r',
            (Color::Magenta, Color::Reset) => 'm',
            (Color::Green, Color::Reset) => 'g',
            (Color::Cyan, Color::Reset) => 'c',
            (Color::White, Color::Red) => 'R',
            (Color::Black, Color::Yellow) => 'Y',
            (Color::Black, Color::Green) => 'G',
            other => panic!("{other:?} at {x} {y} is in no palette"),
        }
    };
    let area = *buffer.area();
    area.rows()
        .map(|row| (row.x..row.right()).map(|x| letter(x, row.y)).collect::<String>().trim_end().to_owned())
        .collect()
}

/// What a snapshot keeps: characters, then looks.
pub fn picture(model: &Model) -> String {
    let buffer = drawn(model, true);
    let (text, looks) = (text(&buffer), looks(&buffer));
    format!(
        "{}\n\n---- b bold, . dim, # reversed, r red, m magenta, g green, c cyan, R Y G on red, yellow, green ----\n{}\n",
        text.join("\n"),
        looks.join("\n")
    )
}
