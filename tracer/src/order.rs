//! Puts what arrives out of order back into the order of its times.
