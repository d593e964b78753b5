//! A real QEMU migrates into `multifd recv`, and every byte of guest RAM is right.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::guest::sha256;
use multifd_tests::program::{Recv, extract};
use multifd_tests::qemu::{Machine, Qemu, UUID, program};
use serde_json::{Value, json};

/// Migrates `qemu` into a file, and returns what `multifd recv` said of it with pc.ram out of that
/// file.
fn into_file(qemu: &mut Qemu, unix: bool, during: impl FnOnce(&mut Qemu)) -> (Value, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    let listen = if unix {
        format!("unix:{}", folder.path().join("socket").display())
    } else {
        "tcp:127.0.0.1:0".into()
    };
    let recv = Recv::start(&listen, &out, &[]);
    qemu.migrate(&recv.address);
    during(qemu);
    qemu.wait_completed();
    let said = recv.succeed();
    (said, extract(&out, "pc.ram"))
}

fn every_combination(compression: &str) {
    if program().is_none() {
        return;
    }
    for channels in [1, 2, 4] {
        for unix in [false, true] {
            for zero_pages in ["multifd", "legacy", "none"] {
                let case =
                    format!("{compression} x{channels}, unix {unix}, zero pages {zero_pages}");
                let mut qemu = Qemu::start(&Machine {
                    seed: channels.into(),
                    ..Machine::default()
                });
                qemu.multifd(channels, compression, zero_pages);
                let (said, ram) = into_file(&mut qemu, unix, |_| ());
                assert_eq!(sha256(&ram), qemu.ram_sha256(), "{case}");
                assert_eq!(said["compression"], compression, "{case}");
                assert_eq!(
                    said["channels"].as_array().unwrap().len(),
                    usize::from(channels),
                    "{case}"
                );
                assert_eq!(said["uuid"], UUID, "{case}");
                assert_eq!(said["sync"], "round", "{case}");
                let zero = said["total"]["zero_pages"].as_u64().unwrap();
                assert_eq!(zero > 0, zero_pages != "none", "{case}");
                let main = said["main"]["zero_pages"].as_u64().unwrap();
                assert_eq!(main > 0, zero_pages == "legacy", "{case}");
            }
        }
    }
}

#[test]
fn without_compression() {
    every_combination("none");
}

#[test]
fn with_zlib() {
    every_combination("zlib");
}

#[test]
fn with_zstd() {
    every_combination("zstd");
}

#[test]
fn a_running_guest_over_several_rounds() {
    if program().is_none() {
        return;
    }
    for (compression, channels) in [("none", 2), ("zlib", 2), ("zstd", 4)] {
        // A guest that gets no processor for a while has dirtied nothing, and QEMU is done with it
        // too soon.
        let rounds = (0..10)
            .map(|_| migrate_running(compression, channels))
            .find(|&rounds| rounds >= 5);
        assert!(
            rounds.is_some(),
            "{compression}: never more than a few rounds"
        );
    }
}

/// Migrates a running guest and checks every byte; returns how many rounds it took.
fn migrate_running(compression: &str, channels: u8) -> u64 {
    let mut qemu = Qemu::start(&Machine {
        boot: true,
        ..Machine::default()
    });
    qemu.multifd(channels, compression, "multifd");
    // As far as QEMU knows the link is too slow to ever stop the guest (one dirty page is too
    // much), until it has gone round a few times. (It looks every 100 ms: the first round must take
    // longer than that.)
    let slow = json!({ "avail-switchover-bandwidth": 10_000, "max-bandwidth": 1 << 20 });
    qemu.execute("migrate-set-parameters", &slow);
    qemu.execute("cont", &json!({}));
    qemu.wait_serial(3);
    let (said, ram) = into_file(&mut qemu, false, |qemu| {
        if qemu.wait_round(5) {
            let fast = json!({ "avail-switchover-bandwidth": 1u64 << 40, "max-bandwidth": 0 });
            qemu.execute("migrate-set-parameters", &fast);
        }
    });
    assert!(ram == qemu.ram_bytes(), "{compression}");
    check_guest(&ram);
    assert!(!qemu.serial().contains('T'), "the guest saw a torn page");
    said["rounds"].as_u64().unwrap()
}

/// Every page of the guest's 128 holds its count, or, from some page on, the one before; at most
/// one is half done.
fn check_guest(ram: &[u8]) {
    let word = |at: usize| u32::from_le_bytes(ram[at..at + 4].try_into().unwrap());
    assert_eq!(&ram[0x8000..0x8004], b"MFDG");
    let n = word(0x8004);
    assert!(n > 4096);
    let values: Vec<u32> = (0x10000..0x90000)
        .step_by(4096)
        .flat_map(|page| [word(page), word(page + 4092)])
        .collect();
    assert!(values.is_sorted_by(|a, b| a >= b), "{values:x?}");
    assert!(
        values.iter().all(|&value| value == n || value == n + 1),
        "{n:x}: {values:x?}"
    );
}

#[test]
fn an_older_machine_type_syncs_each_section() {
    if program().is_none() {
        return;
    }
    for compression in ["none", "zstd"] {
        let mut qemu = Qemu::start(&Machine {
            machine: "pc-i440fx-8.0",
            ..Machine::default()
        });
        qemu.multifd(2, compression, "multifd");
        let (said, ram) = into_file(&mut qemu, false, |_| ());
        assert_eq!(said["sync"], "section");
        assert_eq!(sha256(&ram), qemu.ram_sha256());
    }
}

#[test]
fn what_is_not_supported_says_what_to_switch_off() {
    if program().is_none() {
        return;
    }
    for (multifd, capability, expected) in [
        (true, "return-path", "switch the return-path capability off"),
        (
            false,
            "return-path",
            "switch the return-path capability off",
        ),
        (
            false,
            "postcopy-ram",
            "switch the postcopy-ram capability off",
        ),
        (
            false,
            "dirty-bitmaps",
            "switch the dirty-bitmaps capability off",
        ),
    ] {
        let mut qemu = Qemu::start(&Machine::default());
        if multifd {
            qemu.multifd(2, "none", "multifd");
        }
        qemu.capability(capability);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("vm.mapped");
        let recv = Recv::start("tcp:127.0.0.1:0", &out, &[]);
        qemu.migrate(&recv.address);
        let output = recv.finish();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{capability}: {said}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "a file is left"
        );
    }
}
