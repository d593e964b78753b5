//! Every migration capability and parameter that a QEMU lists, left on by somebody: `snapshot` and
//! `restore` work, or refuse naming it, and all of it is put back.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::other_qemus::Unpacked;
use multifd_tests::program::run;
use multifd_tests::qemu::{Qemu, program};
use serde_json::{Value, json};
use snapshot_steps::settings;
use std::path::Path;

/// What has to be on with a capability.
fn with(name: &str) -> &'static [&'static str] {
    match name {
        "switchover-ack" | "x-colo" => &["return-path"],
        "postcopy-preempt" | "postcopy-blocktime" => &["postcopy-ram"],
        "zero-copy-send" => &["multifd"],
        _ => &[],
    }
}

/// Another value of a parameter than the one it has, if this test knows one.
fn other(name: &str, value: &Value) -> Option<Value> {
    let text = match name {
        "multifd-compression" => "zstd",
        "zero-page-detection" => "legacy",
        "mode" => "cpr-reboot",
        "tls-authz" | "tls-hostname" | "tls-creds" => "nobody",
        _ => "",
    };
    match value {
        Value::Bool(on) => Some((!on).into()),
        Value::String(_) if !text.is_empty() => Some(text.into()),
        Value::Number(number) if name == "xbzrle-cache-size" => Some((number.as_u64()? / 2).into()),
        // Percentages and counts have narrow ranges; one less is within all of them.
        Value::Number(number) if number.as_u64()? > 1 => Some((number.as_u64()? - 1).into()),
        Value::Number(number) => Some((number.as_u64()? + 1).into()),
        _ => None,
    }
}

fn switch(qemu: &mut Qemu, names: &[&str], on: bool) -> Result<Value, String> {
    let list: Vec<_> = names
        .iter()
        .map(|name| json!({ "capability": name, "state": on }))
        .collect();
    qemu.try_execute("migrate-set-capabilities", &json!({ "capabilities": list }))
}

/// Takes a snapshot, or restores one, of which the settings must not be seen afterwards.
fn works(qemu: &mut Qemu, what: &str, args: &[&str]) {
    let before = settings(qemu);
    let monitor = qemu.monitor.to_str().unwrap().to_owned();
    let output = run(&[&[args[0], "-q", "--qmp", &monitor], &args[1..]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {said}");
    assert_eq!(settings(qemu), before, "{what}");
}

/// Goes through all there is; `start` starts a QEMU, a destination if it is told so.
fn all_settings(start: &dyn Fn(bool) -> Qemu) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    let out = out.to_str().unwrap();
    let mut source = start(false);
    let (capabilities, parameters) = settings(&mut source);
    let names: Vec<String> = capabilities
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["capability"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.len() > 15, "{names:?}");
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for name in &names {
        let set = [with(name), &[name.as_str()]].concat();
        // Some cannot be had on this machine: then nobody can leave them on.
        if switch(&mut source, &set, true).is_err() {
            off.push(name.as_str());
            continue;
        }
        on.push(name.as_str());
        works(&mut source, name, &["snapshot", "--force", "--out", out]);
        assert_eq!(source.state(), "running", "{name}");
        let _ = switch(&mut source, &set, false);
    }
    println!("left on: {on:?}; could not be had: {off:?}");
    assert!(on.len() >= 14, "{on:?} {off:?}");
    let mut changed = Vec::new();
    for (name, value) in parameters.as_object().unwrap() {
        let Some(other) = other(name, value) else {
            continue;
        };
        if source
            .try_execute("migrate-set-parameters", &json!({ name: other }))
            .is_err()
        {
            continue;
        }
        changed.push(name.as_str());
        works(&mut source, name, &["snapshot", "--force", "--out", out]);
        source.execute("migrate-set-parameters", &json!({ name: value }));
    }
    println!("changed: {changed:?}");
    assert!(changed.len() >= 15, "{changed:?}");
    // The other end. A destination is restored into once.
    drop(source);
    for name in &on {
        let mut target = start(true);
        if switch(&mut target, &[with(name), &[*name]].concat(), true).is_ok() {
            works(&mut target, name, &["restore", out]);
            assert_eq!(target.state(), "running", "{name}");
        }
    }
    for (name, value) in parameters.as_object().unwrap() {
        let affects = [
            "multifd-",
            "zero-",
            "mode",
            "tls-creds",
            "direct-io",
            "max-bandwidth",
        ];
        if !affects.iter().any(|part| name.starts_with(part)) {
            continue;
        }
        let mut target = start(true);
        if let Some(other) = other(name, value)
            && target
                .try_execute("migrate-set-parameters", &json!({ name: other }))
                .is_ok()
        {
            works(&mut target, name, &["restore", out]);
        }
    }
}

const MACHINE: [&str; 4] = ["-M", "pc", "-m", "16"];

fn arguments(incoming: bool) -> Vec<&'static str> {
    let more: &[&str] = if incoming {
        &["-incoming", "defer"]
    } else {
        &[]
    };
    [&MACHINE, more].concat()
}

#[test]
fn of_the_installed_qemu() {
    if program().is_some() {
        all_settings(&|incoming| Qemu::bare(&arguments(incoming)));
    }
}

#[test]
fn of_qemu_7_2() {
    if let Some(old) = Unpacked::old() {
        all_settings(&|incoming| Qemu::unpacked(&old, &arguments(incoming)));
    }
}

#[test]
fn a_restore_that_fails_puts_all_back() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let (source, mut target) = Qemu::bare_pair(&MACHINE, &arguments(true));
    let monitor = source.monitor.to_str().unwrap();
    let taken = run(&[
        "snapshot",
        "-q",
        "--qmp",
        monitor,
        "--out",
        file.to_str().unwrap(),
    ]);
    assert!(taken.status.success());
    // A destination that cannot listen where it is told to.
    let before = settings(&mut target);
    let monitor = target.monitor.to_str().unwrap().to_owned();
    let nowhere = Path::new("/proc/nowhere/s").display().to_string();
    let args = [
        "restore",
        "--qmp",
        &monitor,
        file.to_str().unwrap(),
        "--via",
    ];
    let output = run(&[&args[..], &[&format!("unix:{nowhere}")]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(settings(&mut target), before);
}
