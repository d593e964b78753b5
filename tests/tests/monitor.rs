//! `multifd snapshot` and `restore` at a QEMU's monitor: what they change, they change back,
//! whatever happens.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::guest::count;
use multifd_tests::program::{extract, json, run};
use multifd_tests::qemu::{Machine, Qemu, program};
use serde_json::json as object;
use snapshot_steps::{folder, machine, running, running_now, said, settings, snapshot, text};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

#[test]
fn the_guest_is_left_as_it_is_asked_to_be() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let mut qemu = running();
    qemu.execute("stop", &object!({}));
    snapshot(&qemu, &folder, "one", &[]);
    assert!(!running_now(&mut qemu), "a stopped guest stays stopped");
    // QEMU does not migrate a guest again that an earlier migration has stopped.
    let again = folder.path().join("two");
    let output = run(&[
        "snapshot",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&again),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("let it run on first"),
        "{}",
        said(&output)
    );
    qemu.execute("cont", &object!({}));
    snapshot(&qemu, &folder, "two", &["--stop"]);
    assert!(!running_now(&mut qemu));
    qemu.execute("cont", &object!({}));
    qemu.execute("stop", &object!({}));
    snapshot(&qemu, &folder, "three", &["--resume"]);
    assert!(running_now(&mut qemu));
    let at = qemu.serial().matches('\n').count();
    qemu.wait_serial(at + 2);
    snapshot(&qemu, &folder, "four", &["--max-rounds", "0"]);
    assert!(running_now(&mut qemu), "stopped early, and started again");
    let output = run(&[
        "diff",
        text(&folder.path().join("one")),
        text(&folder.path().join("four")),
        "--json",
        "--list",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let diff = json(&output);
    // The count, and the guest's 128 pages.
    let changed = diff["blocks"][0]["changed_pages"].as_u64().unwrap();
    assert!((129..140).contains(&changed), "{diff}");
    assert_eq!(diff["blocks"][0]["name"], "pc.ram");
    let ranges = diff["blocks"][0]["ranges"].as_array().unwrap();
    assert!(
        ranges
            .iter()
            .any(|range| range["offset"] == 0x10000 && range["bytes"].as_u64() >= Some(0x80000))
    );
}

#[test]
fn a_failed_snapshot_leaves_the_guest_as_it_was_found() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    // Enough memory for a migration to take a moment.
    let mut qemu = Qemu::start(&Machine {
        ram_mib: 512,
        ..machine()
    });
    qemu.execute("cont", &object!({}));
    qemu.wait_serial(3);
    let before = settings(&mut qemu);
    let out = folder.path().join("vm.mapped");
    let monitor = qemu.monitor.clone();
    // The place to meet is one QEMU cannot reach, the file one that cannot be written to, the
    // wait interrupted.
    let unreachable = [
        "snapshot",
        "--qmp",
        text(&monitor),
        "--out",
        text(&out),
        "--via",
        "unix:/proc/nowhere",
    ];
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "somebody's").unwrap();
    let refused = ["snapshot", "--qmp", text(&monitor), "--out", text(&taken)];
    let level = [
        "snapshot",
        "--qmp",
        text(&monitor),
        "--out",
        "/proc/nowhere",
    ];
    for args in [unreachable.as_slice(), &refused, &level] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert_eq!(settings(&mut qemu), before);
        assert!(running_now(&mut qemu));
    }
    // One that is under way, interrupted; it may be over before we can.
    let interrupted = (0..20).any(|_| interrupt(&mut qemu, &monitor, &out) == Some(130));
    assert!(interrupted, "it is over too soon, every time");
    assert_eq!(settings(&mut qemu), before);
    assert!(running_now(&mut qemu));
    let at = qemu.serial().matches('\n').count();
    qemu.wait_serial(at + 2);
    assert!(!qemu.serial().contains('T'));
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["taken"]);
}

/// Interrupts a snapshot when QEMU has begun to migrate; returns the exit status.
fn interrupt(qemu: &mut Qemu, monitor: &Path, out: &Path) -> Option<i32> {
    let mut child = std::process::Command::new(multifd_tests::program::path())
        .args([
            "snapshot",
            "--json",
            "--no-digest",
            "--force",
            "--qmp",
            text(monitor),
            "--out",
            text(out),
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() {
        let status = qemu.execute("query-migrate", &object!({}))["status"].clone();
        if status == "active" || status == "setup" {
            let killed = std::process::Command::new("kill")
                .args(["-INT", &child.id().to_string()])
                .status();
            assert!(killed.unwrap().success());
            break;
        }
    }
    let status = child.wait().unwrap().code();
    if status == Some(0) {
        std::fs::remove_file(out).unwrap();
    }
    status
}

#[test]
fn restore_wants_a_qemu_that_waits() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let qemu = running();
    let (file, _) = snapshot(&qemu, &folder, "vm.mapped", &[]);
    let output = run(&["restore", "--qmp", text(&qemu.monitor), text(&file)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("start it with -incoming defer"),
        "{}",
        said(&output)
    );
    // Another machine: QEMU says why it cannot load this one.
    let other = Qemu::start(&Machine {
        machine: "q35",
        incoming: true,
        ..machine()
    });
    let output = run(&["restore", "--qmp", text(&other.monitor), text(&file)]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

/// A monitor at which descriptors are lost on their way, as by a forwarder.
fn forwarded(monitor: &Path, at: &Path) {
    let listener = UnixListener::bind(at).unwrap();
    let monitor = monitor.to_owned();
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let qemu = UnixStream::connect(&monitor).unwrap();
            let copy = |mut from: UnixStream, mut to: UnixStream| {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                })
            };
            let there = copy(client.try_clone().unwrap(), qemu.try_clone().unwrap());
            let back = copy(qemu, client);
            there.join().unwrap();
            back.join().unwrap();
        }
    });
}

#[test]
fn where_no_descriptor_can_be_passed_memory_goes_over_sockets() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let source = running();
    forwarded(&source.monitor, &path("source"));
    let args = [
        "snapshot",
        "--json",
        "--qmp",
        text(&path("source")),
        "--out",
        text(&path("vm")),
    ]
    .map(String::from);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&[args.as_slice(), &["--via", "file"]].concat());
    assert!(
        !output.status.success() && said(&output).contains("does not take the file's descriptor"),
        "{}",
        said(&output)
    );
    let output = run(&args);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(json(&output)["by_qemu"], false);
    let before = count(&extract(&path("vm"), "pc.ram"));
    drop(source);
    let mut target = snapshot_steps::waiting();
    forwarded(&target.monitor, &path("target"));
    let output = run(&[
        "restore",
        "--json",
        "--qmp",
        text(&path("target")),
        text(&path("vm")),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("memory goes over sockets"),
        "{}",
        said(&output)
    );
    assert_eq!(json(&output)["by_qemu"], false);
    target.goes_on(before);
}
