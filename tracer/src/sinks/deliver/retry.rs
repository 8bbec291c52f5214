//! When something that could not be delivered is tried again. Pure: the clock and the dice are the caller's.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
pub const LONGEST: Duration = Duration::from_secs(60);
/// What is older than this is given up.
pub const GIVE_UP: Duration = Duration::from_secs(1800);

/// What follows from how a receiver has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has it.
    Done,
    /// It could not take it now.
    Again {
        /// The pause it has asked for.
        after: Option<Duration>,
    },
    /// It will not take it.
    Refused,
}

/// Reads a status of HTTP, and its `Retry-After` in seconds.
pub fn next(status: u16, retry_after: Option<&str>) -> Next {
    let after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    match status {
        200..300 => Next::Done,
        408 | 425 | 429 | 500..600 => Next::Again { after },
        _ => Next::Refused,
    }
}

/// The pause before the attempt that follows `attempts` that have failed: it doubles up to [`LONGEST`], and a throw of
/// the dice takes up to half of it off, so that a thousand nodes do not come back in the same moment.
pub fn pause(attempts: u32, asked: Option<Duration>, dice: u64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let whole = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    let half = whole / 2;
    let part = half.mul_f64(dice as f64 / u64::MAX as f64);
    // Who asks for more gets it, but not for ever.
    (half + part).max(asked.unwrap_or_default().min(2 * LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_was_refused_is_not() {
        for (status, expected) in [
            (200, Next::Done),
            (204, Next::Done),
            (301, Next::Refused),
            (400, Next::Refused),
            (401, Next::Refused),
            (404, Next::Refused),
            (408, Next::Again { after: None }),
            (429, Next::Again { after: None }),
            (500, Next::Again { after: None }),
            (503, Next::Again { after: None }),
        ] {
            assert_eq!(next(status, None), expected, "{status}");
        }
        assert_eq!(next(503, Some(" 7 ")), Next::Again { after: Some(Duration::from_secs(7)) });
        assert_eq!(next(503, Some("Wed, 21 Oct 2015 07:28:00 GMT")), Next::Again { after: None });
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let whole = |attempts| pause(attempts, None, u64::MAX).as_secs();
        assert_eq!([1, 2, 3, 4, 7, 8, 100, u32::MAX].map(whole), [1, 2, 4, 8, 60, 60, 60, 60]);
        assert_eq!(pause(1, Some(Duration::from_secs(9)), 0), Duration::from_secs(9));
        assert_eq!(pause(1, Some(Duration::from_secs(86_400)), 0), 2 * LONGEST);
    }

    proptest! {
        #[test]
        fn the_dice_take_at_most_half(attempts in 0u32..40, dice: u64) {
            let whole = pause(attempts, None, u64::MAX);
            let thrown = pause(attempts, None, dice);
            prop_assert!(thrown <= whole && thrown >= whole / 2, "{thrown:?} of {whole:?}");
        }
    }
}
