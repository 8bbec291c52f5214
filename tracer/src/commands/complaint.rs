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
    /// Since when something waits and nothing gets away, as long as that is so.
    stands: Option<Ns>,
    /// How many had been delivered, and attempts made again, before that.
    before: (u64, u64),
    /// Whether it was told last that something waits.
    waits: bool,
}

impl Complaint {
    /// What is to be said now: of what was lost; of what is late, since it is tried again; and that this is over.
    pub fn of(&mut self, count: &Count, now: Ns) -> Option<String> {
        let lost = count.failed + count.dropped;
        let waiting = count.taken.saturating_sub(count.delivered + lost);
        if waiting == 0 {
            (self.stands, self.before) = (None, (count.delivered, count.again));
        } else if self.stands.is_none() || self.before.0 != count.delivered {
            // An attempt that has failed already is one of those that wait, unless one of them has got away since.
            let again = if self.before.0 == count.delivered { self.before.1 } else { count.again };
            (self.stands, self.before) = (Some(now), (count.delivered, again));
        }
        // What was tried again before is none of those that wait: they may only be slow.
        let stuck = self.stands.is_some_and(|since| now.saturating_sub(since) >= LATE);
        let late = stuck && count.again > self.before.1;
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
        assert_eq!(says([8, 6, 1, 8], 600), "");
        assert_eq!(says([8, 6, 1, 8], 609), "", "slow, and none of its attempts has failed");
        assert_eq!(says([8, 6, 1, 9], 610), "webhook: 1 not delivered yet, tried again: it hangs");
    }
}
