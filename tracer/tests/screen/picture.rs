//! The picture in the README: what the screen shows of a real capture. `cargo xtask picture` draws it anew.

use super::cells::drawn;
use super::svg::svg;
use super::world::replayed;
use std::path::Path;

#[test]
fn the_picture_is_what_the_screen_shows() {
    let model = replayed((160, 46), 12);
    let now = svg(&drawn(&model, true));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/screen.svg");
    if std::env::var_os("UPDATE_PICTURE").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let then = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(then == now, "docs/screen.svg is not what the screen shows: cargo xtask picture");
}
