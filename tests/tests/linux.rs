//! A real Linux guest, which checks its own memory and disk: snapshots of it while it runs, and
//! copies that go on from them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::program::{Recv, json, run};
use multifd_tests::qemu::{Qemu, program};
use snapshot_steps::{succeed, text};

/// Waits until a guest has made so many passes over its memory and files on its disk.
fn wait(qemu: &mut Qemu, memory: usize, disk: usize) -> Said {
    loop {
        let said = Said::read(&qemu.serial());
        if said.memory.len() >= memory && said.disk.len() >= disk {
            return said;
        }
        assert!(!qemu.has_ended(), "{}", qemu.said());
    }
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_live_snapshot_is_the_guest_at_one_instant() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    for compression in ["none", "zstd"] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let args = guest.arguments(&path("disk"));
        let mut source = Qemu::bare(&words(&args));
        let before = wait(&mut source, 3, 2);
        let file = path("vm.mapped");
        let output = succeed(&[
            "snapshot",
            "--json",
            "--compression",
            compression,
            "--max-rounds",
            "4",
            "--qmp",
            text(&source.monitor),
            "--out",
            text(&file),
        ]);
        // The disk as it was then: the copy must not see what the guest writes later.
        let result = json(&output);
        let pause = result["guest"]["pause_seconds"].as_f64().unwrap();
        let downtime = result["guest"]["downtime_seconds"].as_f64().unwrap();
        assert!(
            pause >= downtime && result["guest"]["rounds"].as_u64() >= Some(2),
            "{result}"
        );
        // It goes on as if nothing had been: memory and disk are good, and no tick is missing.
        let after = wait(&mut source, before.memory.len() + 3, before.disk.len() + 2);
        assert!(
            after.ticks.windows(2).all(|two| two[1].0 == two[0].0 + 1),
            "a tick is missing"
        );
        source.execute("quit", &serde_json::json!({}));
        while !source.has_ended() {}
        drop(source);
        assert!(
            run(&["verify", "--require-digest", text(&file)])
                .status
                .success()
        );
        let inspected = json(&succeed(&["inspect", "--json", text(&file)]));
        assert_eq!(inspected["run_state"], "running");

        let args = [args, vec!["-incoming".into(), "defer".into()]].concat();
        let mut copy = Qemu::bare(&words(&args));
        let output = succeed(&[
            "restore",
            "--json",
            "--qmp",
            text(&copy.monitor),
            text(&file),
        ]);
        assert_eq!(json(&output)["state"], "running");
        let restored = loop {
            // Its disk has gone on without it: memory and the clock are what must be right.
            let said = Said::read_without_disk(&copy.serial());
            if said.memory.len() >= 3 {
                break said;
            }
            assert!(!copy.has_ended());
        };
        // The first line may be the rest of one.
        let first = restored.ticks[1];
        let at = after
            .ticks
            .iter()
            .position(|tick| tick.0 == first.0)
            .expect("a tick of the source's");
        assert!(after.ticks[at - 1].1 < first.1);
        assert!(
            restored
                .ticks
                .windows(2)
                .all(|two| two[1].0 == two[0].0 + 1)
        );
        let passes: Vec<u64> = restored.memory.clone();
        assert!(
            passes.windows(2).all(|two| two[1] == two[0] + 1),
            "{passes:?}"
        );
    }
}

#[test]
fn a_source_without_channels_and_a_background_snapshot() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    for background in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let args = guest.arguments(&path("disk"));
        let mut source = Qemu::bare(&words(&args));
        let before = wait(&mut source, 3, 1);
        if background {
            source.capability("background-snapshot");
        } else {
            // This guest writes faster than one connection carries on a busy machine: QEMU may stop
            // it for as long as the rest takes.
            let parameters = serde_json::json!({ "downtime-limit": 60_000, "max-bandwidth": 0 });
            source.execute("migrate-set-parameters", &parameters);
        }
        let file = path("vm.mapped");
        let recv = Recv::start("tcp:127.0.0.1:0", &file, &[]);
        source.migrate(&recv.address);
        source.wait_completed();
        assert_eq!(recv.succeed()["sync"], "none");
        if background {
            let after = wait(&mut source, before.memory.len() + 2, 1);
            assert!(after.ticks.windows(2).all(|two| two[1].0 == two[0].0 + 1));
        }
        drop(source);
        let args = [args, vec!["-incoming".into(), "defer".into()]].concat();
        let mut copy = Qemu::bare(&words(&args));
        succeed(&["restore", "-q", "--qmp", text(&copy.monitor), text(&file)]);
        loop {
            if Said::read_without_disk(&copy.serial()).memory.len() >= 3 {
                break;
            }
            assert!(!copy.has_ended());
        }
    }
}
