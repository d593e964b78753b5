//! Stores in folders, by the program: snapshots of real QEMUs go in, and guests run from them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::program::{Recv, json, path, run, run_measured};
use multifd_tests::qemu::{Qemu, program};
use multifd_tests::stores::{Mounted, Served, image, store, until};
use snapshot_steps::{running, said, succeed, text, waiting};
use std::process::Command;
use std::time::Instant;

/// Without the passes over the disk, which goes on without a restored copy.
fn memory_of(qemu: &Qemu) -> Said {
    Said::read_without_disk(&qemu.serial())
}

#[test]
fn a_linux_guest_into_a_store_and_on_from_it() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let _served = Served(place);
    let args = guest.sized(&place.join("disk"), 256, "memory=32");
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut source = Qemu::bare(&words);
    until("the guest checks its memory", || {
        memory_of(&source).memory.len() >= 2
    });
    let spool = ["--spool", text(place)];
    let snapshot = |name: &str, more: &[&str]| {
        let out = store(place, name);
        let args = [
            "snapshot",
            "--json",
            "--qmp",
            text(&source.monitor),
            "--out",
            &out,
        ];
        json(&succeed(&[&args[..], &spool, more].concat()))
    };
    let live = snapshot("live", &[]);
    let first = live["stored"]["new_bytes"].as_u64().unwrap();
    assert!(live["guest"]["left"] == "running" && first > 0, "{live}");
    let background = snapshot("background", &["--background"]);
    let second = background["stored"]["new_bytes"].as_u64().unwrap();
    assert!(second < first, "{second} of {first} are new");
    source.execute("quit", &serde_json::json!({}));
    until("QEMU ends", || source.has_ended());
    // No more than two QEMUs run at a time, over all tests: each holds one.
    drop(source);
    let left: Vec<_> = std::fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("spool"))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    for name in ["live", "background"] {
        let from = store(place, name);
        succeed(&["verify", &from]);
        let inspected = json(&succeed(&["inspect", "--json", &from]));
        assert_eq!(inspected["run_state"], "running");
        assert_eq!(inspected["has_digest"], true);
        // By sockets, from a mount of the program's own.
        let incoming = [args.clone(), vec!["-incoming".into(), "defer".into()]].concat();
        let words: Vec<&str> = incoming.iter().map(String::as_str).collect();
        let copy = Qemu::bare(&words);
        succeed(&[
            "restore",
            "-q",
            "--via",
            "socket",
            "--qmp",
            text(&copy.monitor),
            &from,
        ]);
        until("the copy checks its memory", || {
            memory_of(&copy).memory.len() >= 2
        });
        drop(copy);
        // Mapped from a mount that outlives the program.
        let options = json(&succeed(&["qemu-options", "--json", &from]));
        let options = options["arguments"].as_array().unwrap().iter();
        let options = options.map(|word| word.as_str().unwrap().to_owned());
        let mut mapped = args.clone();
        let machine = mapped.iter().position(|word| word == "q35").unwrap();
        mapped[machine] = "q35".into();
        mapped.extend(options);
        let words: Vec<&str> = mapped.iter().map(String::as_str).collect();
        let copy = Qemu::bare(&words);
        let restored = [
            "restore",
            "--json",
            "--instant",
            "--qmp",
            text(&copy.monitor),
            &from,
        ];
        let restored = json(&succeed(&restored));
        assert_eq!(restored["state"], "running");
        assert!(
            restored["mapped"]["bytes"].as_u64() >= Some(256 << 20),
            "{restored}"
        );
        until("the clone checks its memory", || {
            memory_of(&copy).memory.len() >= 2
        });
    }
    let found = run(&[
        "diff",
        "--json",
        &store(place, "live"),
        &store(place, "background"),
    ]);
    let found = json(&found);
    assert!(
        found["changed_pages"].as_u64() > Some(0) && found["ok"] == true,
        "{found}"
    );
}

#[test]
fn what_qemu_sends_is_received_into_a_store_and_sent_out_of_it() {
    if program().is_none() {
        return;
    }
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let _served = Served(place);
    let mut source = running();
    let out = store(place, "vm");
    let spool = ["--spool", text(place)];
    let recv = Recv::start("tcp:127.0.0.1:0", out.as_ref(), &spool);
    source.multifd(4, "zstd", "multifd");
    source.migrate(&recv.address);
    source.wait_completed();
    let received = recv.succeed();
    assert_eq!(received["file"], out.as_str());
    let sha = source.ram_sha256();
    drop(source);
    let mut target = waiting();
    target.multifd(2, "none", "multifd");
    let to = target.listen("tcp:127.0.0.1:0");
    succeed(&["send", "-q", &out, "--to", &to, "--channels", "2"]);
    target.wait_completed();
    assert_eq!(target.ram_sha256(), sha);
    drop(target);
    // What QEMU writes by itself goes the same way.
    let source = running();
    let args = [
        "snapshot",
        "--json",
        "--via",
        "file",
        "--stop",
        "--qmp",
        text(&source.monitor),
    ];
    let again = store(place, "by-qemu");
    let taken = json(&succeed(&[&args[..], &["--out", &again], &spool].concat()));
    assert_eq!(
        (&taken["by_qemu"], &taken["file"]),
        (&true.into(), &again.as_str().into())
    );
    let sha = source.ram_sha256();
    drop(source);
    let mut copy = waiting();
    succeed(&[
        "restore",
        "-q",
        "--stop",
        "--qmp",
        text(&copy.monitor),
        &again,
    ]);
    copy.wait_settled();
    assert_eq!(copy.ram_sha256(), sha);
}

#[test]
fn a_writer_that_is_killed_leaves_a_whole_snapshot_or_none() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 64, 48, 1);
    let list = || {
        let listed = run(&["store", "ls", "--json", text(&place.join("store"))]);
        if !listed.status.success() {
            return Vec::new();
        }
        let listed = json(&listed)["snapshots"].clone();
        let names = listed.as_array().unwrap().iter();
        names
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    // From before the store is there to after the snapshot is.
    let whole = {
        let begun = Instant::now();
        succeed(&["store", "import", "-q", text(&file), &store(place, "whole")]);
        begun.elapsed()
    };
    for number in 0..12_u32 {
        let name = format!("n{number}");
        // Other contents, so that there is something to write.
        let file = image(place, &name, 64, 48, 100 + u64::from(number));
        let mut child = Command::new(path())
            .args(["store", "import", "-q", text(&file), &store(place, &name)])
            .spawn()
            .unwrap();
        let end = Instant::now() + whole * number / 9;
        until("the moment comes", || Instant::now() >= end);
        let _ = child.kill();
        child.wait().unwrap();
        std::fs::remove_file(file).unwrap();
        for name in list() {
            succeed(&["verify", &store(place, &name)]);
        }
    }
    assert!(list().contains(&"whole".to_owned()));
    // What they left goes when their leases have ended; until then it waits.
    let report = json(&succeed(&[
        "store",
        "gc",
        "--json",
        text(&place.join("store")),
    ]));
    assert_eq!(report["ok"], true);
    for name in list() {
        succeed(&["verify", &store(place, &name)]);
    }
}

#[test]
fn memory_does_not_grow_with_the_guest() {
    const MIB: u64 = 1 << 20;
    let folder = snapshot_steps::folder();
    let place = folder.path();
    // What is uploaded at the same time comes on top: four packs of 8 MiB, and the open one.
    let most = (64 + 2 * 4 + 40) * MIB;
    let mut figures = Vec::new();
    for (name, mib, data) in [("small", 512, 256), ("large", 8192, 1024)] {
        let file = image(place, name, mib, data, 3);
        let (output, used) =
            run_measured(&["store", "import", "-q", text(&file), &store(place, name)]);
        assert!(output.status.success(), "{}", said(&output));
        let out = place.join("out");
        let args = [
            "store",
            "export",
            "-q",
            "--force",
            &store(place, name),
            "--out",
            text(&out),
        ];
        let (output, read) = run_measured(&args);
        assert!(output.status.success(), "{}", said(&output));
        std::fs::remove_file(file).unwrap();
        println!(
            "{name}: {} KiB writing, {} KiB reading",
            used >> 10,
            read >> 10
        );
        assert!(
            used <= most && read <= most,
            "{name}: {used} and {read} bytes"
        );
        figures.push(used);
    }
    assert!(figures[1] < figures[0] + 32 * MIB, "{figures:?}");
}

#[test]
fn json_is_as_the_schema_says() {
    let schema = include_str!("../../docs/json.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let (from, all) = (store(place, "vm"), place.join("store"));
    let (out, other) = (place.join("out"), place.join("other"));
    for args in [
        vec!["store", "import", text(&file), &from],
        vec!["store", "ls", text(&all)],
        vec!["store", "stats", text(&all)],
        vec!["store", "show", &from],
        vec!["store", "export", &from, "--out", text(&out)],
        vec!["store", "copy", &from, text(&other)],
        vec!["verify", &from],
        vec!["store", "rm", &from],
        vec!["store", "gc", text(&all)],
    ] {
        let output = succeed(&[&args[..], &["--json"]].concat());
        let printed = json(&output);
        assert!(validator.is_valid(&printed), "{args:?}: {printed}");
    }
    std::fs::write(all.join("snapshots/stray"), b"not a manifest").unwrap();
    for command in ["ls", "stats"] {
        let printed = json(&run(&["store", command, "--json", text(&all)]));
        let listed = printed["unreadable"].as_array().map(Vec::len);
        assert!(
            validator.is_valid(&printed) && listed == Some(1),
            "{printed}"
        );
    }
    let mount = Mounted::with(&all, &place.join("mnt"), &["--json"]);
    let printed = serde_json::from_str(&mount.said).unwrap();
    assert!(validator.is_valid(&printed), "{printed}");
}
