//! The container image of the lab: a static busybox as an OCI image layout in a tar, made without a registry.

use super::sys;
use anyhow::{Context, Result, bail};
use object::read::elf::ProgramHeader as _;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::Path;

/// Its name; `localhost/` so that nothing is ever pulled for it.
pub const NAME: &str = "localhost/plegscope-lab:1";

/// The same with a `VOLUME`, which the runtime fills from the image when it creates a container, and with a user by name,
/// whom it looks up in the image.
pub const WITH_VOLUME: &str = "localhost/plegscope-lab-volume:1";
/// Where that volume is.
const VOLUME: &str = "/bin";

/// The applets that get a name in `/bin`.
const APPLETS: [&str; 4] = ["sh", "dd", "sleep", "sync"];

/// Writes the image of that name to `path`.
pub fn write(path: &Path, name: &str) -> Result<()> {
    let layer = layer()?;
    let volumes = if name == WITH_VOLUME { json!({ VOLUME: {} }) } else { json!(null) };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/sleep"],
            "Cmd": ["2147483647"],
            "Env": ["PATH=/bin"],
            "User": if name == WITH_VOLUME { "root" } else { "" },
            "Volumes": volumes,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;

    let mut tar =
        tar::Builder::new(File::create(path).with_context(|| format!("creating {}", path.display()))?);
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", 0o644, &index)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut tar, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    tar.finish().with_context(|| format!("writing {}", path.display()))
}

fn layer() -> Result<Vec<u8>> {
    let path = sys::which("busybox").context("busybox is not installed: apt-get install busybox-static")?;
    let busybox = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    if !is_static(&path) {
        bail!("{} is not static: apt-get install busybox-static", path.display());
    }
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "bin/busybox", 0o755, &busybox)?;
    append(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
    append(&mut tar, "etc/group", 0o644, b"root:x:0:\n")?;
    for applet in APPLETS {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")
            .context("building the image layer")?;
    }
    tar.into_inner().context("building the image layer")
}

/// Whether a program needs no loader (no PT_INTERP program header), which the image would lack.
pub fn is_static(path: &Path) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    let Ok(file) = object::read::elf::ElfFile64::<object::Endianness>::parse(&*bytes) else { return false };
    let endian = file.endian();
    !file.elf_program_headers().iter().any(|header| header.p_type(endian) == object::elf::PT_INTERP)
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    tar.append_data(&mut header(mode, bytes.len() as u64), path, bytes)
        .with_context(|| format!("adding {path} to the image"))
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The image's architecture in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
