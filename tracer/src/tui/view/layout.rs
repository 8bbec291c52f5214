//! What gets how much of the screen.

use super::verdict;
use crate::correlator::words;
use crate::thresholds::SECOND;
use crate::tui::message::Capture;
use crate::tui::message::TICKS;
use crate::tui::model::Model;
use crate::tui::panes::Pane;
use crate::tui::text::{Ink, Line};
use ratatui::layout::Rect;

/// From this size on all panes are shown.
const LARGE: (u16, u16) = (120, 36);
/// On a smaller screen than this there is only the verdict.
const TINY: (u16, u16) = (40, 10);

/// Who stands where.
pub struct Plan {
    /// The first line.
    pub header: Rect,
    /// Room of the verdict.
    pub verdict: Rect,
    /// The verdict, as it fits.
    pub words: Vec<Line>,
    /// Panes that are shown.
    pub panes: Vec<(Pane, Rect)>,
    /// The last line.
    pub footer: Rect,
}

/// Divides the screen.
pub fn plan(model: &Model, area: Rect) -> Plan {
    let header = Rect { height: area.height.min(1), ..area };
    let footer = Rect { y: area.bottom().saturating_sub(1), height: u16::from(area.height > 1), ..area };
    let between = Rect {
        y: header.bottom(),
        height: area.height.saturating_sub(header.height + footer.height),
        ..area
    };
    if area.width < TINY.0 || area.height < TINY.1 {
        let words = verdict::words(model, between.width, between.height);
        return Plan { header, verdict: between, words, panes: Vec::new(), footer };
    }
    let is_large = is_large((area.width, area.height));
    // Room for the verdict: what follows is what proves it.
    let most = if is_large { between.height / 4 } else { (between.height / 3).max(4) };
    let words = verdict::words(model, between.width, most);
    let height = (words.len() as u16).min(most);
    let verdict = Rect { height, ..between };
    let rest = Rect { y: verdict.bottom(), height: between.height.saturating_sub(height), ..between };
    let panes = if is_large && !model.zoomed { all(model, rest) } else { vec![(model.pane, rest)] };
    Plan { header, verdict, words, panes, footer }
}

/// Whether all panes have room.
pub fn is_large(size: (u16, u16)) -> bool {
    size.0 >= LARGE.0 && size.1 >= LARGE.1
}

/// At the left the chain, and below it what is in flight; at the right the others.
fn all(model: &Model, area: Rect) -> Vec<(Pane, Rect)> {
    let width = area.width * 11 / 20;
    let links = Pane::Chain.rows(model).len() as u16;
    // A heading, titles, and what is said in full of the selected link.
    let height = (links + 5).clamp(area.height / 3, area.height * 3 / 5);
    let chain = Rect { width, height, ..area };
    let in_flight = Rect { y: chain.bottom(), height: area.height - height, ..chain };
    let right = Rect { x: area.x + width + 1, width: area.width - width - 1, ..area };
    let mut panes = vec![(Pane::Chain, chain), (Pane::InFlight, in_flight)];
    /// Panes at the right, with their parts of the height.
    const RIGHT: [(Pane, u16); 5] =
        [(Pane::Relists, 11), (Pane::Latencies, 8), (Pane::Disk, 8), (Pane::Incidents, 5), (Pane::Probes, 7)];
    let all: u16 = RIGHT.iter().map(|(_, part)| part).sum();
    let mut y = right.y;
    let mut parts = 0;
    for (pane, part) in RIGHT {
        parts += part;
        let bottom = area.y + (u32::from(area.height) * u32::from(parts) / u32::from(all)) as u16;
        panes.push((pane, Rect { y, height: bottom - y, ..right }));
        y = bottom;
    }
    panes
}

/// What must be known whatever is looked at.
pub fn marks(model: &Model) -> Vec<(Ink, String)> {
    let mut marks = Vec::new();
    match (model.is_replay(), model.position.ended, model.position.paused) {
        (true, true, _) => marks.push((Ink::Mark, "END".to_owned())),
        (true, false, true) => marks.push((Ink::WarnMark, "PAUSED".to_owned())),
        _ => {}
    }
    if let (Some(frozen), Some(latest)) = (&model.frozen, &model.latest) {
        let behind = words::duration(latest.now.saturating_sub(frozen.frame.now) / SECOND * SECOND);
        marks.push((Ink::WarnMark, format!("FROZEN, {behind} behind")));
    }
    let silent = (model.ticks - model.news_at.min(model.ticks)) / TICKS;
    if !model.is_replay() && model.latest.is_some() && silent >= 3 {
        marks.push((Ink::WarnMark, format!("NO NEWS FOR {silent}s")));
    }
    if let Capture::On(_, bytes) = &model.capture {
        marks.push((Ink::GoodMark, format!("CAPTURING {}", words::bytes(*bytes))));
    }
    if let Some(frame) = model.frame() {
        let lost: u64 = frame.losses.iter().map(|l| l.count).sum();
        if lost > 0 {
            marks.push((Ink::WarnMark, format!("{lost} LOST")));
        }
        let blind = frame.blind_spots.len();
        if blind > 0 && model.is_looking() {
            marks.push((Ink::Mark, format!("{blind} blind spots")));
        }
    }
    marks
}
