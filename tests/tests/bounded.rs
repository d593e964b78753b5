//! Memory of every command, whatever the guest's size: at most 64 MiB, and 2 MiB a channel.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_core::RamBlock;
use multifd_tests::mapped;
use multifd_tests::program::{MemoryWatch, Recv, json, run_measured};
use multifd_tests::qemu::{Qemu, program};
use snapshot_steps::{said, text};
use std::fs::File;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const CHANNELS: u64 = 4;
/// What a command may hold.
const MOST: u64 = (64 + 2 * CHANNELS) * MIB;

/// A folder in memory, if there is one: a disk may be small.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        snapshot_steps::folder()
    }
}

fn check(what: &str, output: &std::process::Output, most: u64) {
    assert!(output.status.success(), "{what}: {}", said(output));
    println!("{what}: {} KiB", most >> 10);
    assert!(most <= MOST, "{what} had {most} bytes of its own");
}

fn measured(what: &str, args: &[&str]) {
    let (output, most) = run_measured(args);
    check(what, &output, most);
}

/// A file with a guest of `mib`, of which the first page of each `every` MiB, and all of the first
/// `data` MiB, hold something.
fn image(folder: &Path, mib: u64, data: u64, every: u64) -> PathBuf {
    let block = RamBlock::anonymous("pc.ram", mib * MIB, 4096).unwrap();
    let piece: Vec<u8> = (0..MIB as u32 / 4)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    for at in 0..data {
        block
            .region(at * MIB, piece.len())
            .unwrap()
            .copy_from(&piece);
    }
    for at in (0..mib).step_by(every as usize) {
        block.page(at * MIB).unwrap().copy_from(&piece[..4096]);
    }
    let path = folder.join("image");
    mapped::create(&path, block);
    path
}

/// Sends a file through a relay to a receiver, and has every other command read the result.
fn through_all(mib: u64, data: u64, every: u64) {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let file = image(folder.path(), mib, data, every);
    let out = path("out");
    let recv = Recv::start(
        "tcp:127.0.0.1:0",
        &out,
        &["--channels", "4", "--no-space-check", "--max-ram", "64G"],
    );
    let relay = Recv::listening(
        None,
        &[
            "relay",
            "--listen",
            "tcp:127.0.0.1:0",
            "--to",
            &recv.address,
            "--channels",
            "4",
        ],
    );
    let (at_recv, at_relay) = (
        MemoryWatch::start(recv.pid()),
        MemoryWatch::start(relay.pid()),
    );
    let to = relay.address.clone();
    measured(
        "send",
        &["send", text(&file), "--to", &to, "--channels", "4"],
    );
    let (relay, recv) = (relay.finish(), recv.finish());
    check("relay", &relay, at_relay.end());
    check("recv", &recv, at_recv.end());
    measured("verify", &["verify", "--require-digest", text(&out)]);
    measured("diff", &["diff", text(&file), text(&out)]);
    let bin = path("bin");
    measured(
        "extract",
        &[
            "extract",
            text(&out),
            "--block",
            "pc.ram",
            "--out",
            text(&bin),
        ],
    );
    std::fs::remove_file(&out).unwrap();
    // A raw image, compressed on its way.
    let again = path("again");
    let recv = Recv::start(
        "tcp:127.0.0.1:0",
        &again,
        &["--no-space-check", "--max-ram", "64G"],
    );
    let at_recv = MemoryWatch::start(recv.pid());
    let raw = [
        "send",
        "--raw",
        text(&bin),
        "--to",
        &recv.address,
        "--channels",
        "4",
        "--compression",
        "zstd",
    ];
    measured("send --raw", &raw);
    check("recv", &recv.finish(), at_recv.end());
    measured("diff", &["diff", text(&file), text(&again)]);
}

#[test]
fn a_guest_of_1_gib() {
    through_all(1024, 512, 1);
}

#[test]
fn a_guest_of_4_gib() {
    through_all(4096, 256, 1);
}

#[test]
fn a_sparse_guest_of_16_gib() {
    through_all(16384, 16, 8);
}

/// Snapshots of a real QEMU by every way, and restores of them.
fn with_qemu(mib: u64, data: u64) {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let ram = path("ram");
    let bytes: Vec<u8> = (0..data * MIB / 8)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    std::fs::write(&ram, &bytes).unwrap();
    File::options()
        .write(true)
        .open(&ram)
        .unwrap()
        .set_len(mib * MIB)
        .unwrap();
    let object = format!(
        "memory-backend-file,id=pc.ram,size={mib}M,share=on,mem-path={}",
        ram.display()
    );
    let size = mib.to_string();
    for (name, more) in [
        ("file", ["--via", "file"].as_slice()),
        ("socket", &["--via", "socket"]),
        ("zstd", &["--compression", "zstd"]),
    ] {
        // Each guest is migrated once: QEMU does not do it again before it has run on.
        let source = Qemu::bare(&[
            "-S",
            "-M",
            "pc,memory-backend=pc.ram",
            "-m",
            &size,
            "-object",
            &object,
        ]);
        let out = path(name);
        let args = [
            "snapshot",
            "--qmp",
            text(&source.monitor),
            "--no-space-check",
            "--out",
            text(&out),
        ];
        measured(&format!("snapshot, {name}"), &[&args, more].concat());
        drop(source);
        if name == "zstd" {
            continue;
        }
        let target = Qemu::bare(&["-S", "-M", "pc", "-m", &size, "-incoming", "defer"]);
        let args = [
            "restore",
            "--qmp",
            text(&target.monitor),
            text(&out),
            "--verify",
        ];
        measured(&format!("restore, {name}"), &[&args, more].concat());
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_qemu_of_1_gib() {
    with_qemu(1024, 256);
}

#[test]
fn a_qemu_of_4_gib() {
    with_qemu(4096, 128);
}

#[test]
fn a_sparse_qemu_of_16_gib() {
    with_qemu(16384, 16);
}

#[test]
fn a_snapshot_in_the_background() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let source = snapshot_steps::running_privately();
    let out = folder.path().join("vm.mapped");
    let args = [
        "snapshot",
        "--json",
        "--background",
        "--qmp",
        text(&source.monitor),
        "--out",
        text(&out),
    ];
    let (output, most) = run_measured(&args);
    check("snapshot --background", &output, most);
    assert_eq!(json(&output)["guest"]["left"], "running");
}
