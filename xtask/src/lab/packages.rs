//! Installs the Debian packages that a lab or a bench needs and that are missing.

use super::sys;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A program and the package that holds it.
pub struct Need {
    /// Looked up in PATH.
    program: &'static str,
    /// Debian's name.
    package: &'static str,
    /// Whether what was found will do.
    will_do: fn(&Path) -> bool,
}

/// Any version of a program will do.
pub const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package, will_do: |_| true }
}

/// The program in the lab's container image.
pub const BUSYBOX: Need =
    Need { program: "busybox", package: "busybox-static", will_do: super::image::is_static };

/// What the demo and the end-to-end test need.
pub const LAB: [Need; 8] = [
    need("containerd", "containerd"),
    need("runc", "runc"),
    BUSYBOX,
    need("strace", "strace"),
    need("mkfs.ext4", "e2fsprogs"),
    need("losetup", "mount"),
    need("mount", "mount"),
    need("dd", "coreutils"),
];

/// What stories on XFS need beside it.
pub const XFS: [Need; 1] = [need("mkfs.xfs", "xfsprogs")];

/// What builds the Go programs that stories and benches probe.
pub const GO: [Need; 1] = [need("go", "golang-go")];

/// What the bench needs.
pub const BENCH: [Need; 2] = [need("go", "golang-go"), need("bpftrace", "bpftrace")];

fn there(need: &Need) -> bool {
    sys::which(need.program).is_some_and(|path| (need.will_do)(&path))
}

/// Whether nothing is missing.
pub fn all_there(needs: &[Need]) -> bool {
    needs.iter().all(there)
}

/// Installs what is missing with apt-get, saying so; does nothing when all is there.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> = needs.iter().filter(|need| !there(need)).map(|need| need.package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if sys::which("apt-get").is_none() {
        bail!("missing: {}. There is no apt-get here; install them by hand", missing.join(", "));
    }
    println!("installing with apt-get: {}", missing.join(", "));
    let apt = |args: &[&str]| -> Result<bool> {
        let status = Command::new("apt-get")
            // Somebody else may be installing something, too.
            .args(["-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::process::Stdio::null())
            .status()
            .context("starting apt-get")?;
        Ok(status.success())
    };
    let install: Vec<&str> =
        ["install", "--no-install-recommends"].into_iter().chain(missing.iter().copied()).collect();
    // The index may be missing or old on a fresh machine.
    let installed = apt(&install)? || apt(&["update"])? && apt(&install)?;
    if !installed {
        bail!(
            "apt-get could not install {}; run `apt-get install {}` to see why",
            missing.join(", "),
            missing.join(" ")
        );
    }
    if missing.contains(&"containerd") {
        println!("Debian's containerd starts as a service of its own; nothing here talks to it");
        println!("(`systemctl disable --now containerd` if it is not wanted)");
    }
    Ok(())
}
