//! `snapshot` and `restore` that do not live to their end, or whose other half does not: QEMU is as
//! it was, or is again after the next run; and what the user is told of a monitor that does not
//! answer.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::program::{path, run};
use multifd_tests::qemu::{Machine, Qemu, program};
use serde_json::{Value, json};
use snapshot_steps::{said, settings, text};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A guest whose migration takes long, as QEMU sends no more than 4 MiB a second of the zero pages
/// it is told to send whole.
fn slow() -> Qemu {
    let mut qemu = Qemu::bare(&["-M", "pc", "-m", "64"]);
    qemu.execute(
        "migrate-set-capabilities",
        &json!({ "capabilities": [
        { "capability": "return-path", "state": true },
        { "capability": "switchover-ack", "state": true },
    ] }),
    );
    qemu.execute(
        "migrate-set-parameters",
        &json!({ "multifd-channels": 7, "downtime-limit": 299 }),
    );
    qemu
}

/// The ways that a snapshot can go.
const WAYS: [&str; 2] = ["file", "socket"];

/// Starts a snapshot.
fn begin(qemu: &mut Qemu, out: &Path, wrapper: &[&str], via: &str) -> Child {
    begin_with(qemu, out, wrapper, &["--via", via])
}

fn begin_with(qemu: &mut Qemu, out: &Path, wrapper: &[&str], more: &[&str]) -> Child {
    let args = [
        "snapshot",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(out),
        "--timeout",
        "60",
    ];
    let all: Vec<&str> = wrapper
        .iter()
        .copied()
        .chain([text(path())])
        .chain(args)
        .chain(more.iter().copied())
        .collect();
    Command::new(all[0])
        .args(&all[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn wait_changed(qemu: &mut Qemu, before: &(Value, Value), child: &mut Child) -> bool {
    while child.try_wait().unwrap().is_none() {
        if settings(qemu) != *before {
            return true;
        }
    }
    false
}

/// Has something done to a snapshot that is under way, until it has been met at work; the guest and
/// its settings must be as before. By each way.
fn meet(what: &str, mut act: impl FnMut(&mut Qemu, Child, &Path)) {
    for via in WAYS {
        meet_by(&format!("{what}, {via}"), via, &mut act);
    }
}

fn meet_by(what: &str, via: &str, act: &mut impl FnMut(&mut Qemu, Child, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    let mut qemu = slow();
    let before = settings(&mut qemu);
    for _ in 0..50 {
        let mut child = begin(&mut qemu, &out, &[], via);
        if !wait_changed(&mut qemu, &before, &mut child) {
            child.wait().unwrap();
            let _ = std::fs::remove_file(&out);
            let _ = std::fs::remove_file(folder.path().join("vm.mapped.crc"));
            continue;
        }
        act(&mut qemu, child, folder.path());
        assert_eq!(settings(&mut qemu), before, "{what}");
        assert_eq!(qemu.state(), "running", "{what}");
        return;
    }
    panic!("{what}: it is over too soon, every time");
}

/// A QEMU whose connections broke off while they were being made does not migrate again: that is
/// said, and everything is put back all the same.
fn is_stuck(output: &std::process::Output) -> bool {
    let stuck = said(output).contains("QEMU still holds the connections of an earlier migration");
    assert!(
        !stuck || said(output).contains("is put back"),
        "{}",
        said(output)
    );
    stuck
}

fn left(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn two_signals_are_no_more_than_one() {
    if program().is_none() {
        return;
    }
    for name in ["INT", "TERM"] {
        meet(name, |_, child, folder| {
            signal(&child, name);
            // It may be gone by now; if not, this one must not keep it from putting everything
            // back.
            let _ = Command::new("kill")
                .args([&format!("-{name}"), &child.id().to_string()])
                .status();
            let output = child.wait_with_output().unwrap();
            let expected = if name == "INT" { 130 } else { 143 };
            if output.status.code() != Some(0) {
                assert_eq!(output.status.code(), Some(expected), "{}", said(&output));
                assert!(
                    said(&output).contains("multifd: interrupted"),
                    "{}",
                    said(&output)
                );
                assert!(left(folder).is_empty());
            }
        });
    }
}

#[test]
fn kill_9_is_made_good_by_the_next_run() {
    if program().is_none() {
        return;
    }
    meet("kill -9", |qemu, mut child, folder| {
        signal(&child, "KILL");
        child.wait().unwrap();
        // The next run, whatever it is for: here one that is refused for its own reasons, but for a
        // good file.
        let other = folder.join("other.mapped");
        let output = run(&[
            "snapshot",
            "--qmp",
            text(&qemu.monitor),
            "--out",
            text(&other),
        ]);
        if is_stuck(&output) {
            return;
        }
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("is put back"), "{}", said(&output));
        let mut names = left(folder);
        names.sort();
        names.retain(|name| !name.starts_with("vm.mapped"));
        assert_eq!(
            names,
            ["other.mapped", "other.mapped.crc"],
            "the dead one's temporary files are gone"
        );
        let again = run(&[
            "snapshot",
            "-q",
            "--force",
            "--qmp",
            text(&qemu.monitor),
            "--out",
            text(&other),
        ]);
        assert!(
            !said(&again).contains("put back"),
            "once is enough: {}",
            said(&again)
        );
    });
}

#[test]
fn the_guest_of_a_killed_snapshot_runs_on() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    for via in WAYS {
        let mut qemu = slow();
        let before = settings(&mut qemu);
        // Killed when the file is synced: by then it had put everything back itself.
        let script = "exec strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:signal=KILL:when=1 \"$@\"";
        let mut child = begin(&mut qemu, &out, &["sh", "-c", script, "sh"], via);
        child.wait().unwrap();
        assert_eq!(
            (settings(&mut qemu), qemu.state().as_str()),
            (before.clone(), "running"),
            "{via}"
        );
    }
    // One that the killed run has stopped is let run by the next; one that somebody else has
    // stopped stays so.
    for (via, by_us) in [("socket", true), ("socket", false), ("file", true)] {
        stopped_and_killed(folder.path(), via, by_us);
    }
}

/// A guest that has 512 MiB of memory to be written, while its snapshot goes into a file: QEMU goes
/// on without us.
#[test]
fn a_migration_that_outlives_us_is_waited_for_by_the_next_run() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut qemu = Qemu::start(&Machine {
        ram_mib: 512,
        boot: true,
        filled: true,
        ..Machine::default()
    });
    qemu.execute("cont", &json!({}));
    qemu.wait_serial(3);
    let before = settings(&mut qemu);
    for _ in 0..20 {
        let mut child = begin(&mut qemu, &path("vm.mapped"), &[], "file");
        while child.try_wait().unwrap().is_none() {
            let info = qemu.execute("query-migrate", &json!({}));
            if info["status"] == "active" {
                break;
            }
        }
        signal(&child, "KILL");
        child.wait().unwrap();
        if settings(&mut qemu) == before {
            continue;
        }
        let output = run(&[
            "snapshot",
            "--force",
            "--qmp",
            text(&qemu.monitor),
            "--out",
            text(&path("next")),
        ]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("is put back"), "{}", said(&output));
        assert_eq!(
            (settings(&mut qemu), qemu.state().as_str()),
            (before, "running")
        );
        let at = qemu.serial().matches('\n').count();
        qemu.wait_serial(at + 2);
        assert!(!qemu.serial().contains('T'));
        assert!(
            run(&["verify", "--require-digest", text(&path("next"))])
                .status
                .success()
        );
        return;
    }
    panic!("it is over too soon, every time");
}

fn stopped_and_killed(folder: &Path, via: &str, by_us: bool) {
    let (out, other) = (folder.join("vm.mapped"), folder.join("other.mapped"));
    let mut qemu = slow();
    let before = settings(&mut qemu);
    for _ in 0..100 {
        let rounds = if by_us { "0" } else { "20" };
        let mut child = begin_with(
            &mut qemu,
            &out,
            &[],
            &["--force", "--via", via, "--max-rounds", rounds],
        );
        let mut met = wait_changed(&mut qemu, &before, &mut child);
        while by_us && met && qemu.state() != "paused" {
            met = child.try_wait().unwrap().is_none();
        }
        if !met {
            child.wait().unwrap();
            continue;
        }
        signal(&child, "KILL");
        child.wait().unwrap();
        if settings(&mut qemu) == before {
            // It had got further than we thought.
            continue;
        }
        if !by_us {
            qemu.execute("stop", &json!({}));
        }
        let output = run(&[
            "snapshot",
            "--force",
            "--qmp",
            text(&qemu.monitor),
            "--out",
            text(&other),
        ]);
        if is_stuck(&output) {
            assert_eq!(settings(&mut qemu), before);
            return;
        }
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("is put back"), "{}", said(&output));
        let expected = if by_us { "running" } else { "postmigrate" };
        assert_eq!(
            (settings(&mut qemu), qemu.state().as_str()),
            (before, expected)
        );
        return;
    }
    panic!("it is over too soon, every time");
}

#[test]
fn a_receiving_half_that_fails_early_ends_all_of_it() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    let mut qemu = Qemu::bare(&["-M", "pc", "-m", "64"]);
    let before = settings(&mut qemu);
    // Its file may not grow.
    let limited = ["sh", "-c", "ulimit -f 100; exec \"$@\"", "sh"];
    let mut child = begin(&mut qemu, &out, &limited, "socket");
    let deadline = Instant::now() + Duration::from_secs(100);
    while child.try_wait().unwrap().is_none() {
        assert!(
            Instant::now() < deadline,
            "the two halves wait for each other"
        );
        qemu.execute("query-status", &json!({}));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("File too large"),
        "{}",
        said(&output)
    );
    assert!(left(folder.path()).is_empty());
    assert_eq!(
        (settings(&mut qemu), qemu.state().as_str()),
        (before, "running")
    );
}

#[test]
fn a_monitor_that_another_uses_is_named_as_such() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::bare(&["-M", "pc", "-m", "16"]);
    let _another = UnixStream::connect(&qemu.monitor).unwrap();
    let out = folder.path().join("vm.mapped");
    let output = run(&[
        "snapshot",
        "--timeout",
        "1",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&out),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("serves one client at a time"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_machine_that_does_not_fit_is_told_before_anything_is_sent() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let source = Qemu::bare(&["-M", "pc", "-m", "16", "-device", "VGA"]);
    let taken = run(&[
        "snapshot",
        "-q",
        "--qmp",
        text(&source.monitor),
        "--out",
        text(&file),
    ]);
    assert!(taken.status.success(), "{}", said(&taken));
    drop(source);
    for (args, expected) in [
        (
            ["-M", "pc", "-m", "32", "-device", "VGA"].as_slice(),
            "-m 16M",
        ),
        (
            &["-M", "q35", "-m", "16", "-device", "VGA"],
            "the machine type is \"pc-q35-",
        ),
        (
            &["-M", "pc", "-m", "16"],
            "it has no RAM block \"0000:00:02.0/vga.vram\"",
        ),
        (
            &[
                "-M",
                "pc",
                "-m",
                "16",
                "-device",
                "VGA",
                "-device",
                "secondary-vga",
            ],
            "and the snapshot has none",
        ),
    ] {
        let mut target = Qemu::bare(&[args, &["-incoming", "defer"]].concat());
        let before = settings(&mut target);
        let output = run(&["restore", "--qmp", text(&target.monitor), text(&file)]);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            said(&output).contains(expected),
            "{args:?}: {}",
            said(&output)
        );
        assert_eq!(
            (settings(&mut target), target.state().as_str()),
            (before, "inmigrate"),
            "{args:?}"
        );
    }
    // What cannot be compared, QEMU itself refuses: its devices.
    let args = [
        "-M",
        "pc",
        "-m",
        "16",
        "-device",
        "VGA",
        "-device",
        "ib700",
        "-incoming",
        "defer",
    ];
    let mut target = Qemu::bare(&args);
    let output = run(&["restore", "--qmp", text(&target.monitor), text(&file)]);
    if output.status.code() != Some(0) {
        assert!(
            said(&output).contains("QEMU refused the snapshot"),
            "{}",
            said(&output)
        );
        while !target.has_ended() {}
    }
}

#[test]
fn a_guest_in_the_last_moment_of_another_migration_is_left_alone() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (folder.path().join("theirs"), folder.path().join("ours"));
    let mut qemu = Qemu::bare(&["-M", "pc", "-m", "16"]);
    qemu.capability("pause-before-switchover");
    let recv = multifd_tests::program::Recv::start("tcp:127.0.0.1:0", &theirs, &[]);
    qemu.migrate(&recv.address);
    qemu.wait_migration(&["pre-switchover"]);
    assert_eq!(qemu.state(), "finish-migrate");
    let before = settings(&mut qemu);
    let output = run(&[
        "snapshot",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&ours),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("busy with a migration (finish-migrate, pre-switchover)"),
        "{}",
        said(&output)
    );
    assert_eq!(
        (settings(&mut qemu), qemu.state().as_str()),
        (before, "finish-migrate")
    );
    qemu.execute("migrate-continue", &json!({ "state": "pre-switchover" }));
    qemu.wait_migration(&["completed"]);
    recv.succeed();
}

#[test]
fn what_a_destination_may_not_have_liked_is_said() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let uuid = "11112222-3333-4444-5555-666677778888";
    let mut source = Qemu::bare(&["-m", "16", "-uuid", uuid]);
    source.mapped_ram(2, false);
    source.migrate(&format!("file:{}", file.display()));
    source.wait_completed();
    drop(source);
    for (uuid, channels, expected) in [
        (Some(uuid), "2", "--uuid says it"),
        (None, "4", "another number of channels than 4 (--channels)"),
    ] {
        let more: &[&str] = if let Some(uuid) = uuid {
            &["-uuid", uuid]
        } else {
            &[]
        };
        let mut target = Qemu::bare(&[&["-m", "16", "-incoming", "defer"], more].concat());
        target.multifd(2, "none", "multifd");
        let address = target.listen("tcp:127.0.0.1:0");
        let output = run(&[
            "send",
            "-q",
            text(&file),
            "--to",
            &address,
            "--channels",
            channels,
        ]);
        assert_eq!(output.status.code(), Some(1), "{expected}");
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
    // One that was told of more waits for them; that is said when nothing has moved for a while.
    let mut target = Qemu::bare(&["-m", "16", "-incoming", "defer"]);
    target.multifd(3, "none", "multifd");
    let address = target.listen("tcp:127.0.0.1:0");
    let args = [
        "send",
        text(&file),
        "--to",
        &address,
        "--channels",
        "2",
        "--timeout",
        "1",
        "--finish-timeout",
        "3",
    ];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("told of more channels"),
        "{}",
        said(&output)
    );
}
