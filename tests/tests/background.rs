//! Snapshots of a guest that writes faster than its memory can be copied: as of one instant, with
//! one short pause.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::guest::count;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::program::{extract, json, run};
use multifd_tests::qemu::{Qemu, program};
use serde_json::json as object;
use snapshot_steps::{
    folder, load_by_qemu, running, running_now, running_privately, said, settings, snapshot,
    succeed, text,
};

#[test]
fn the_source_runs_on_and_the_copy_is_the_instant() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let mut source = running_privately();
    let before = settings(&mut source);
    let (file, result) = snapshot(&source, &folder, "vm.mapped", &["--background"]);
    assert_eq!(
        (&result["sync"], &result["guest"]["left"]),
        (&object!("none"), &object!("running"))
    );
    assert_eq!(
        settings(&mut source),
        before,
        "what was changed is changed back"
    );
    let at = source.serial().matches('\n').count();
    source.wait_serial(at + 2);
    assert!(!source.serial().contains('T'));
    succeed(&["verify", "--require-digest", text(&file)]);
    load_by_qemu(&file, false).goes_on(count(&extract(&file, "pc.ram")));
}

#[test]
fn what_cannot_be_taken_in_the_background_is_refused() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let out = folder.path().join("vm.mapped");
    let mut source = running();
    let refuse = |source: &Qemu, more: &[&str]| {
        let args = [
            "snapshot",
            "--background",
            "--qmp",
            text(&source.monitor),
            "--out",
            text(&out),
        ];
        let output = run(&[&args, more].concat());
        assert!(!output.status.success());
        assert!(!out.exists());
        said(&output)
    };
    // Shared memory cannot be write-protected: QEMU says so, before the guest is touched.
    let said = refuse(&source, &[]);
    assert!(
        said.contains("must be private") && said.contains("Nothing was changed"),
        "{said}"
    );
    source.execute("stop", &object!({}));
    let said = refuse(&source, &[]);
    assert!(
        said.contains("does not run") && said.contains("Nothing was changed"),
        "{said}"
    );
    source.execute("cont", &object!({}));
    let said = refuse(&source, &["--via", "file"]);
    assert!(said.contains("goes over a socket"), "{said}");
    assert!(running_now(&mut source));
}

/// A Linux guest that dirties its memory much faster than it is let be copied.
#[test]
fn a_guest_that_writes_without_end() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    let folder = folder();
    let mut args = guest.arguments(&folder.path().join("disk"));
    let append = args
        .iter()
        .position(|word| word.starts_with("console="))
        .unwrap();
    args[append].push_str(" dirty=64:100000");
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut source = Qemu::bare(&words);
    let wait = |qemu: &mut Qemu, memory: usize| loop {
        let found = Said::read_without_disk(&qemu.serial());
        if found.memory.len() >= memory {
            return found;
        }
        assert!(!qemu.has_ended(), "{}", qemu.said());
    };
    let before = wait(&mut source, 3);
    let (file, result) = snapshot(&source, &folder, "vm.mapped", &["--background"]);
    let after = wait(&mut source, before.memory.len() + 2);
    drop(source);
    let pause = result["guest"]["pause_seconds"].as_f64().unwrap();
    let gap = after.longest_gap_since(before.ticks.last().unwrap().0);
    println!(
        "the guest stood still for {:.1} ms by QEMU's events; longest time between two ticks {:.1} ms",
        pause * 1e3,
        gap * 1e3
    );
    assert!(after.ticks.windows(2).all(|two| two[1].0 == two[0].0 + 1));
    succeed(&["verify", "--require-digest", text(&file)]);
    let more = [words, vec!["-incoming", "defer"]].concat();
    let mut copy = Qemu::bare(&more);
    let restored = json(&succeed(&[
        "restore",
        "--json",
        "--qmp",
        text(&copy.monitor),
        text(&file),
    ]));
    assert_eq!(restored["state"], "running");
    let found = wait(&mut copy, 2);
    assert!(found.ticks.windows(2).all(|two| two[1].0 == two[0].0 + 1));
    assert!(found.memory.windows(2).all(|two| two[1] == two[0] + 1));
}
