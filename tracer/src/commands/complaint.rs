//! What watch says on standard error of alerts that do not get away: now and then, and of each way by itself.

use crate::{event::Ns, sinks::deliver::Count, thresholds::SECOND};

/// That a way does not work is told again after this time.
const COMPLAIN_EVERY: Ns = 60 * SECOND;

/// What is tried again is late, and that is told, after this time.
const LATE: Ns = 5 * SECOND;

/// What was said last of a way on which alerts leave.
#[derive(Default)]
pub struct Complaint {
    lost: u64,
    /// When; 0 for never.
    at: Ns,
    /// How many had been delivered when an attempt had failed and something waited, and since when that is so.
    stands: Option<(u64, Ns)>,
    /// Whether it was told last that something waits.
    waits: bool,
}

impl Complaint {
    /// What is to be said now: of what was lost; of what is late, since it is tried again; and that this is over.
    pub fn of(&mut self, count: &Count, now: Ns) -> Option<String> {
        let lost = count.failed + count.dropped;
        let waiting = count.taken.saturating_sub(count.delivered + lost);
        let since = match self.stands.filter(|(delivered, _)| *delivered == count.delivered && waiting > 0) {
            Some((_, since)) => since,
            None => {
                self.stands = (waiting > 0).then_some((count.delivered, now));
                now
            }
        };
        let late = count.again > 0 && waiting > 0 && now.saturating_sub(since) >= LATE;
        let new = lost.saturating_sub(self.lost);
        let soon = self.at > 0 && now.saturating_sub(self.at) < COMPLAIN_EVERY;
        let over = self.waits && waiting == 0;
        if soon || !(new > 0 || late || over) {
            return None;
        }
        (self.lost, self.at, self.waits) = (lost, now, late);
        let (name, error) = (&count.name, &count.error);
        Some(match new {
            1.. => format!("{name}: {new} not delivered: {error}"),
            0 if late => format!("{name}: {waiting} not delivered yet, tried again: {error}"),
            0 => format!("{name}: all is delivered again; the last that failed: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_or_late_is_said_and_not_too_often() {
        let mut complaint = Complaint::default();
        let mut says = |[taken, delivered, failed, again]: [u64; 4], second: Ns| {
            let (name, error) = ("webhook".to_owned(), "it hangs".to_owned());
            let count = Count { name, taken, delivered, failed, again, error, dropped: 0 };
            complaint.of(&count, second * SECOND).unwrap_or_default()
        };
        assert_eq!(says([3, 3, 0, 0], 1), "");
        assert_eq!(says([4, 3, 0, 1], 2), "", "one hiccup");
        assert_eq!(says([4, 4, 0, 1], 3), "");
        assert_eq!(says([6, 4, 0, 2], 100), "");
        assert_eq!(says([6, 4, 0, 2], 104), "");
        assert_eq!(says([6, 4, 0, 2], 105), "webhook: 2 not delivered yet, tried again: it hangs");
        assert_eq!(says([7, 4, 0, 7], 164), "", "too soon");
        assert_eq!(says([7, 4, 0, 7], 165), "webhook: 3 not delivered yet, tried again: it hangs");
        assert_eq!(says([7, 4, 1, 8], 300), "webhook: 1 not delivered: it hangs");
        assert_eq!(
            says([7, 6, 1, 8], 400),
            "webhook: all is delivered again; the last that failed: it hangs"
        );
        assert_eq!(says([7, 6, 1, 8], 500), "");
    }
}
