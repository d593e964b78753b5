//! A real QEMU takes what `multifd send` sends, by every method, and the guest goes on.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::guest::count;
use multifd_tests::program::{self, Recv, json, run};
use multifd_tests::qemu::{Machine, Qemu, UUID, program};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Migrates `qemu` into a file.
fn snapshot(qemu: &mut Qemu, folder: &Path) -> PathBuf {
    let out = folder.join("vm.mapped");
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &[]);
    qemu.migrate(&recv.address);
    qemu.wait_completed();
    recv.succeed();
    out
}

/// Sends a file to a QEMU that waits for it; it must take it.
fn into(qemu: &mut Qemu, file: &Path, uri: &str, channels: u8, compression: &str) {
    qemu.multifd(channels, compression, "multifd");
    let address = qemu.listen(uri);
    let channels = channels.to_string();
    let output = run(&[
        "send",
        file.to_str().unwrap(),
        "--to",
        &address,
        "--channels",
        &channels,
        "--compression",
        compression,
        "--uuid",
        UUID,
        "--json",
    ]);
    assert!(
        output.status.success(),
        "{}; QEMU: {}",
        String::from_utf8_lossy(&output.stderr),
        qemu.said()
    );
    assert_eq!(json(&output)["compression"], compression);
    qemu.wait_completed();
}

fn every_method(machine: &'static str) {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut source = Qemu::start(&Machine {
        machine,
        ..Machine::default()
    });
    source.multifd(2, "none", "multifd");
    let file = snapshot(&mut source, folder.path());
    let expected = source.ram_bytes();
    drop(source);
    for compression in ["none", "zlib", "zstd"] {
        for (channels, unix) in [(1, true), (4, false)] {
            let mut target = Qemu::start(&Machine {
                machine,
                incoming: true,
                ..Machine::default()
            });
            let uri = if unix {
                format!("unix:{}", folder.path().join("socket").display())
            } else {
                "tcp:127.0.0.1:0".into()
            };
            into(&mut target, &file, &uri, channels, compression);
            assert!(
                target.ram_bytes() == expected,
                "{machine} {compression} x{channels}"
            );
        }
    }
}

#[test]
fn qemu_takes_every_method() {
    every_method("pc");
}

#[test]
fn qemu_takes_a_machine_that_syncs_each_section() {
    every_method("pc-i440fx-8.0");
}

#[test]
fn how_channels_sync_and_zero_pages_go_can_be_said() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut source = Qemu::start(&Machine::default());
    source.multifd(2, "none", "multifd");
    let file = snapshot(&mut source, folder.path());
    let expected = source.ram_bytes();
    for zero_pages in ["multifd", "legacy", "none"] {
        // A destination that syncs each section although its machine type's name does not say so.
        let mut target = Qemu::start(&Machine {
            incoming: true,
            more: &["-global", "migration.multifd-flush-after-each-section=on"],
            ..Machine::default()
        });
        target.multifd(2, "zstd", "multifd");
        let address = target.listen("tcp:127.0.0.1:0");
        let mut args = vec![
            "send",
            file.to_str().unwrap(),
            "--to",
            &address,
            "--compression",
            "zstd",
        ];
        args.extend([
            "--uuid",
            UUID,
            "--sync",
            "section",
            "--zero-pages",
            zero_pages,
            "--json",
        ]);
        let output = run(&args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said = json(&output);
        assert_eq!(said["sync"], "section");
        let zero = said["total"]["zero_pages"].as_u64().unwrap();
        assert_eq!(zero > 0, zero_pages != "none");
        let main = said["main"]["zero_pages"].as_u64().unwrap();
        assert_eq!(main > 0, zero_pages == "legacy");
        target.wait_completed();
        assert!(target.ram_bytes() == expected, "{zero_pages}");
    }
}

/// A QEMU neither sees checksums, nor who compressed a packet, nor that its level changes.
#[test]
fn what_is_ours_alone_a_qemu_does_not_notice() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut source = Qemu::start(&Machine::default());
    source.multifd(2, "none", "multifd");
    let file = snapshot(&mut source, folder.path());
    let expected = source.ram_bytes();
    drop(source);
    let cases: [(&str, &[&str]); 7] = [
        ("none", &["--checksum"]),
        ("zlib", &["--checksum"]),
        ("zstd", &["--checksum", "--compress-threads", "0"]),
        ("zstd", &["--compress-threads", "3", "--level", "19"]),
        ("zstd", &["--channels", "1"]),
        ("zstd", &["--level", "auto"]),
        (
            "zstd",
            &["--level", "auto", "--checksum", "--compress-threads", "2"],
        ),
    ];
    for (compression, more) in cases {
        let mut target = Qemu::start(&Machine {
            incoming: true,
            ..Machine::default()
        });
        let channels = if more.contains(&"--channels") { 1 } else { 2 };
        target.multifd(channels, compression, "multifd");
        let address = target.listen("tcp:127.0.0.1:0");
        let file = file.to_str().unwrap();
        let args = [
            "send",
            file,
            "--to",
            &address,
            "--compression",
            compression,
            "--uuid",
            UUID,
            "--json",
        ];
        let output = run(&[&args[..], more].concat());
        assert!(
            output.status.success(),
            "{compression} {more:?}: {}; QEMU: {}",
            String::from_utf8_lossy(&output.stderr),
            target.said()
        );
        target.wait_completed();
        assert!(target.ram_bytes() == expected, "{compression} {more:?}");
        assert_eq!(json(&output)["auto"].is_object(), more.contains(&"auto"));
    }
}

#[test]
fn the_guest_goes_on_where_it_was() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine {
        boot: true,
        ..Machine::default()
    };
    let mut source = Qemu::start(&machine);
    source.multifd(2, "zstd", "multifd");
    source.execute("cont", &json!({}));
    source.wait_serial(5);
    let file = snapshot(&mut source, folder.path());
    let before = count(&program::extract(&file, "pc.ram"));
    let mut target = Qemu::start(&Machine {
        incoming: true,
        ..machine
    });
    into(&mut target, &file, "tcp:127.0.0.1:0", 4, "zstd");
    target.goes_on(before);
}
