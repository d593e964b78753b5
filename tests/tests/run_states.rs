//! `multifd snapshot` and `restore` in every run state that can be brought about
//! (docs/run-states.md).
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_qemu::qmp::{RunStateRule, run_state_rule};
use multifd_tests::program::{json, run};
use multifd_tests::qemu::{Qemu, program};
use serde_json::json as object;
use snapshot_steps::settings;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A floppy's boot sector that executes some bytes, and then does nothing.
fn boot(folder: &Path, code: &[u8]) -> String {
    let mut sector = vec![0xfa];
    sector.extend(code);
    sector.extend([0xf4, 0xeb, 0xfd]);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let path = folder.join("boot.img");
    std::fs::write(&path, sector).unwrap();
    format!("if=floppy,format=raw,readonly=on,file={}", path.display())
}

/// `mov dx, PORT; mov ax, VALUE; out dx, ax`
fn out(port: u16, value: u16) -> Vec<u8> {
    let [p, q] = port.to_le_bytes();
    let [v, w] = value.to_le_bytes();
    vec![0xba, p, q, 0xb8, v, w, 0xef]
}

fn snapshot(qemu: &Qemu, out: &Path, more: &[&str]) -> std::process::Output {
    let monitor = qemu.monitor.to_str().unwrap();
    run(&[
        &[
            "snapshot",
            "--json",
            "--qmp",
            monitor,
            "--out",
            out.to_str().unwrap(),
        ],
        more,
    ]
    .concat())
}

/// What is expected of a snapshot without further options.
enum Plain {
    /// It is taken, and leaves the guest in this state.
    Leaves(&'static str),
    /// It is refused, and this is said.
    Refused(&'static str),
}

/// Takes snapshots of a guest in a state: without options, then, if that is refused and
/// `with_stop`, with `--stop`.
fn in_state(qemu: &mut Qemu, state: &str, plain: &Plain, with_stop: bool) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    qemu.wait_state(state);
    let before = settings(qemu);
    let output = snapshot(qemu, &out, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!qemu.has_ended(), "{state}: {said}");
    assert_eq!(settings(qemu), before, "{state}");
    match plain {
        Plain::Leaves(left) => {
            let shown = json(&output);
            assert!(output.status.success(), "{state}: {said}");
            assert_eq!(
                (&shown["guest"]["found"], &shown["guest"]["left"]),
                (&object!(state), &object!(left))
            );
            assert_eq!(qemu.state(), *left);
            let pause = shown["guest"]["pause_seconds"].as_f64();
            assert_eq!(
                pause.is_some_and(|pause| pause > 0.0),
                state == "running",
                "{shown}"
            );
        }
        Plain::Refused(why) => {
            assert_eq!(output.status.code(), Some(1), "{state}: {said}");
            assert!(
                said.contains(why) && said.contains("Nothing was changed"),
                "{state}: {said}"
            );
            assert_eq!(qemu.state(), state, "{said}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
    if with_stop {
        let output = snapshot(qemu, &out, &["--stop", "--force"]);
        assert!(
            output.status.success(),
            "{state}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(settings(qemu), before, "{state}");
        assert_eq!(qemu.state(), "postmigrate");
        let inspected = json(&run(&["inspect", "--json", out.to_str().unwrap()]));
        assert_eq!(
            inspected["run_state"], state,
            "the snapshot keeps the state"
        );
    }
}

#[test]
fn running_paused_and_not_started() {
    if program().is_none() {
        return;
    }
    let mut qemu = Qemu::bare(&["-m", "16", "-S"]);
    in_state(&mut qemu, "prelaunch", &Plain::Leaves("postmigrate"), false);
    in_state(
        &mut qemu,
        "postmigrate",
        &Plain::Refused("does not migrate it again"),
        false,
    );
    qemu.execute("cont", &object!({}));
    in_state(&mut qemu, "running", &Plain::Leaves("running"), true);
    qemu.execute("cont", &object!({}));
    qemu.execute("stop", &object!({}));
    in_state(&mut qemu, "paused", &Plain::Leaves("postmigrate"), false);
    qemu.execute("cont", &object!({}));
    assert_eq!(qemu.state(), "running");
}

#[test]
fn suspended_to_ram() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // PIIX4's PM1a control register: S3.
    let drive = boot(folder.path(), &out(0x604, 0x2400));
    let mut qemu = Qemu::bare(&["-M", "pc", "-m", "32", "-drive", &drive]);
    qemu.wait_state("suspended");
    let before = settings(&mut qemu);
    for more in [[].as_slice(), &["--resume"], &["--stop"]] {
        let output = snapshot(&qemu, &folder.path().join("vm.mapped"), more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("system_wakeup"), "{said}");
    }
    assert_eq!(settings(&mut qemu), before);
    assert_eq!(qemu.state(), "suspended");
    qemu.execute("system_wakeup", &object!({}));
    qemu.execute("cont", &object!({}));
    assert_eq!(qemu.state(), "running", "it can still be woken");
}

#[test]
fn shut_down_panicked_and_bitten_by_a_watchdog() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let refused = Plain::Refused("--stop");
    let drive = boot(folder.path(), &out(0x604, 0x2000));
    let mut qemu = Qemu::bare(&["-M", "pc", "-m", "32", "-drive", &drive, "-no-shutdown"]);
    in_state(&mut qemu, "shutdown", &refused, false);
    let output = snapshot(&qemu, &folder.path().join("vm.mapped"), &["--resume"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(1),
        "it would run on without a reset"
    );
    assert!(said.contains("needs a reset"), "{said}");
    in_state(&mut qemu, "shutdown", &refused, true);
    // It can come back: by a reset, as before.
    qemu.execute("system_reset", &object!({}));
    qemu.execute("cont", &object!({}));
    drop(qemu);

    // `out 0x505, al`, with bit 0: a panic.
    let panic = [0xba, 0x05, 0x05, 0xb0, 0x01, 0xee];
    let drive = boot(folder.path(), &panic);
    let more = ["-device", "pvpanic", "-action", "panic=pause"];
    let mut qemu =
        Qemu::bare(&[&["-M", "pc", "-m", "32", "-drive", &drive], more.as_slice()].concat());
    in_state(&mut qemu, "guest-panicked", &refused, true);
    drop(qemu);

    // IB700's timer register, with no time left.
    let bite = [0xba, 0x43, 0x04, 0xb0, 0x0f, 0xee];
    let drive = boot(folder.path(), &bite);
    let more = ["-device", "ib700", "-action", "watchdog=pause"];
    let mut qemu =
        Qemu::bare(&[&["-M", "pc", "-m", "32", "-drive", &drive], more.as_slice()].concat());
    in_state(&mut qemu, "watchdog", &refused, true);
}

#[test]
fn stopped_by_an_error_of_the_disk() {
    if program().is_none() {
        return;
    }
    let disk = "driver=blkdebug,node-name=broken,image.driver=null-co,image.size=1048576,image.read-zeroes=on,\
                inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5";
    let mut qemu = Qemu::bare(&[
        "-M",
        "pc",
        "-m",
        "32",
        "-blockdev",
        disk,
        "-device",
        "ide-hd,drive=broken,rerror=stop,werror=stop",
    ]);
    in_state(&mut qemu, "io-error", &Plain::Refused("--stop"), true);
}

#[test]
fn stopped_by_a_debugger() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("gdb");
    let gdb = format!("unix:{},server=on,wait=off", socket.display());
    let mut qemu = Qemu::bare(&["-M", "pc", "-m", "32", "-gdb", &gdb]);
    let mut debugger = UnixStream::connect(&socket).unwrap();
    // One step, and then it stands.
    debugger.write_all(b"+$?#3f").unwrap();
    let mut answer = [0; 64];
    assert!(debugger.read(&mut answer).unwrap() > 0);
    debugger.write_all(b"+$s#73").unwrap();
    in_state(&mut qemu, "debug", &Plain::Refused("--stop"), true);
}

#[test]
fn a_qemu_that_waits_for_a_migration_or_has_been_given_one() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let (mut source, mut target) =
        Qemu::bare_pair(&["-m", "16"], &["-m", "16", "-incoming", "defer"]);
    in_state(
        &mut target,
        "inmigrate",
        &Plain::Refused("has no guest yet"),
        false,
    );
    assert!(snapshot(&source, &file, &[]).status.success());
    // Every other state is no state to restore into.
    for state in ["running", "paused"] {
        source.wait_state(state);
        let before = settings(&mut source);
        let output = run(&[
            "restore",
            "--qmp",
            source.monitor.to_str().unwrap(),
            file.to_str().unwrap(),
        ]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("-incoming defer") && said.contains("Nothing was changed"),
            "{said}"
        );
        assert_eq!(
            (source.state().as_str(), settings(&mut source)),
            (state, before)
        );
        source.execute("stop", &object!({}));
    }
    let restored = run(&[
        "restore",
        "--json",
        "--qmp",
        target.monitor.to_str().unwrap(),
        file.to_str().unwrap(),
    ]);
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    assert_eq!(json(&restored)["state"], "running");
    assert_eq!(target.state(), "running");
}

#[test]
fn the_documents_table_says_what_the_rules_do() {
    let text = include_str!("../../docs/run-states.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 16, "QEMU 10.0 has so many states");
    for row in rows {
        let (state, says) = (row[1].trim_matches('`'), row[2]);
        let expected = match run_state_rule(state) {
            RunStateRule::GoesOn | RunStateRule::StaysStopped => "yes",
            RunStateRule::OnlyWithStop { no_resume: false } => "with `--stop` or `--resume`",
            RunStateRule::OnlyWithStop { no_resume: true } => "with `--stop` only",
            RunStateRule::Refused(_) => "refused",
            other => panic!("{other:?}"),
        };
        assert_eq!(says, expected, "{state}");
    }
}
