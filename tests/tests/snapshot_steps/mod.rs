//! Steps of the snapshot tests: guests that run or wait, and the program's commands.
#![allow(dead_code, unreachable_pub)] // Each test binary uses a part.

use multifd_tests::program::{json, run};
use multifd_tests::qemu::{Machine, Qemu};
use serde_json::{Value, json as object};
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

/// A folder on a disk: direct I/O means nothing elsewhere.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn machine() -> Machine {
    Machine {
        boot: true,
        ..Machine::default()
    }
}

pub fn waiting() -> Qemu {
    Qemu::start(&Machine {
        incoming: true,
        ..machine()
    })
}

/// A guest that has begun to count.
pub fn running() -> Qemu {
    let mut qemu = Qemu::start(&machine());
    qemu.execute("cont", &object!({}));
    qemu.wait_serial(3);
    qemu
}

/// The arguments of the boot sector's guest, without its RAM.
pub fn boot(machine: &str) -> Vec<String> {
    let boot = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/boot.bin");
    let drive = format!("if=floppy,format=raw,readonly=on,file={boot}");
    ["-M", machine, "-m", "16", "-drive", &drive]
        .map(String::from)
        .to_vec()
}

/// A guest that has begun to count, in memory that is QEMU's own.
pub fn running_privately() -> Qemu {
    let args = boot("pc");
    let mut qemu = Qemu::bare(&args.iter().map(String::as_str).collect::<Vec<_>>());
    qemu.wait_serial(3);
    qemu
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn succeed(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Takes a snapshot by the program, into `name`.
pub fn snapshot(qemu: &Qemu, folder: &TempDir, name: &str, more: &[&str]) -> (PathBuf, Value) {
    let file = folder.path().join(name);
    let mut args = vec![
        "snapshot",
        "--json",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&file),
    ];
    args.extend(more);
    let output = succeed(&args);
    (file, json(&output))
}

/// Restores a file by QEMU itself, `-incoming file:`.
pub fn load_by_qemu(file: &Path, direct_io: bool) -> Qemu {
    let mut target = waiting();
    target.mapped_ram(4, direct_io);
    target.execute(
        "migrate-incoming",
        &object!({ "uri": format!("file:{}", file.display()) }),
    );
    target.wait_completed();
    target
}

pub fn running_now(qemu: &mut Qemu) -> bool {
    qemu.execute("query-status", &object!({}))["running"]
        .as_bool()
        .unwrap()
}

pub fn settings(qemu: &mut Qemu) -> (Value, Value) {
    (
        qemu.execute("query-migrate-capabilities", &object!({})),
        qemu.execute("query-migrate-parameters", &object!({})),
    )
}
