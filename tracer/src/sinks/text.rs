//! Frames as plain text, without colour: for `live --plain`, `watch`, and the scenario tests.
