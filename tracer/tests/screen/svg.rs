//! A screen as a picture for documents: an SVG made of the cells themselves.

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};
use std::fmt::Write;
use unicode_width::UnicodeWidthStr;

/// A cell, in units of the picture.
const CELL: (u32, u32) = (8, 17);
/// Around all cells.
const MARGIN: u32 = 10;
const GROUND: &str = "#1c1c1c";
const INK: &str = "#d0d0d0";

/// The colours of a usual dark terminal.
fn colour(colour: Color, otherwise: &'static str) -> &'static str {
    match colour {
        Color::Red => "#e05561",
        Color::Green => "#8cc265",
        Color::Yellow => "#d7b04c",
        Color::Magenta => "#c678dd",
        Color::Cyan => "#42b3c2",
        Color::White => "#ffffff",
        Color::Black => "#000000",
        _ => otherwise,
    }
}

/// How a run of cells looks.
#[derive(Clone, PartialEq)]
struct Look {
    ink: &'static str,
    ground: &'static str,
    bold: bool,
    dim: bool,
    underlined: bool,
}

fn look(buffer: &Buffer, x: u16, y: u16) -> Look {
    let cell = &buffer[(x, y)];
    let has = |modifier| cell.modifier.contains(modifier);
    let (mut ink, mut ground) = (colour(cell.fg, INK), colour(cell.bg, GROUND));
    if has(Modifier::REVERSED) {
        (ink, ground) = (ground, ink);
    }
    Look {
        ink,
        ground,
        bold: has(Modifier::BOLD),
        dim: has(Modifier::DIM),
        underlined: has(Modifier::UNDERLINED),
    }
}

/// The picture.
pub fn svg(buffer: &Buffer) -> String {
    let area = *buffer.area();
    let (width, height) =
        (u32::from(area.width) * CELL.0 + 2 * MARGIN, u32::from(area.height) * CELL.1 + 2 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"ui-monospace, \
         SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"13\" xml:space=\"preserve\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{GROUND}\"/>\n"
    );
    for y in 0..area.height {
        let mut x = 0;
        while x < area.width {
            let begin = x;
            let look = look(buffer, x, y);
            let mut text = String::new();
            while x < area.width && self::look(buffer, x, y) == look {
                let symbol = buffer[(x, y)].symbol();
                text.push_str(symbol);
                x += (symbol.width() as u16).max(1);
            }
            run(&mut out, begin, y, x - begin, &text, &look);
        }
    }
    out + "</svg>\n"
}

fn run(out: &mut String, x: u16, y: u16, cells: u16, text: &str, look: &Look) {
    let (left, top) = (u32::from(x) * CELL.0 + MARGIN, u32::from(y) * CELL.1 + MARGIN);
    let width = u32::from(cells) * CELL.0;
    if look.ground != GROUND {
        let _ = writeln!(
            out,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{}\" fill=\"{}\"/>",
            CELL.1, look.ground
        );
    }
    if text.trim().is_empty() {
        return;
    }
    // Blanks at either end need no ink, and what does not begin with one stands where its first cell does.
    let lead = text.chars().take_while(|c| *c == ' ').count() as u32;
    let text = text.trim_matches(' ');
    let length = text.width() as u32 * CELL.0;
    let mut style = String::new();
    if look.bold {
        style.push_str(" font-weight=\"bold\"");
    }
    if look.dim {
        style.push_str(" opacity=\"0.6\"");
    }
    if look.underlined {
        style.push_str(" text-decoration=\"underline\"");
    }
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let (from, base) = (left + lead * CELL.0, top + 13);
    let _ = writeln!(
        out,
        "<text x=\"{from}\" y=\"{base}\" textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{}\"{style}>{escaped}</text>",
        look.ink
    );
}

#[test]
fn a_picture_has_every_line_and_no_markup_of_others() {
    let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, 20, 2));
    buffer.set_string(1, 0, "<script>&", ratatui::style::Style::default());
    buffer.set_string(0, 1, " STUCK ", ratatui::style::Style::default().fg(Color::White).bg(Color::Red));
    let svg = svg(&buffer);
    assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script>"), "{svg}");
    assert!(svg.contains("fill=\"#e05561\"") && svg.contains(">STUCK</text>"), "{svg}");
}
