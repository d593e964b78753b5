//! A running guest into a file, out of it, and on: each step with a real QEMU at the other end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::guest::{contents, count};
use multifd_tests::mapped;
use multifd_tests::program::{Recv, extract, json, run};
use multifd_tests::qemu::{Machine, Qemu, UUID, program};
use serde_json::json as object;
use snapshot_steps::{
    folder, load_by_qemu, machine, running, running_now, settings, snapshot, succeed, text, waiting,
};
use std::fs::File;

#[test]
fn a_snapshot_is_restored_by_qemu_itself_and_the_source_runs_on() {
    if program().is_none() {
        return;
    }
    for (via, compression, direct_io) in [
        ("file", "none", "off"),
        ("file", "none", "on"),
        ("auto", "none", "auto"),
        ("socket", "none", "off"),
        ("socket", "zstd", "on"),
    ] {
        let folder = folder();
        let mut source = running();
        source.capability("xbzrle");
        let before_settings = settings(&mut source);
        let more = [
            "--via",
            via,
            "--channels",
            "3",
            "--compression",
            compression,
            "--direct-io",
            direct_io,
        ];
        let (file, result) = snapshot(&source, &folder, "vm.mapped", &more);
        assert_eq!(result["compression"], compression);
        assert_eq!(result["uuid"], UUID);
        let by_qemu = via == "file";
        assert_eq!(result["by_qemu"], by_qemu);
        let channels = if by_qemu { 0 } else { 3 };
        assert_eq!(result["channels"].as_array().unwrap().len(), channels);
        assert!(running_now(&mut source), "the source goes on");
        assert_eq!(
            settings(&mut source),
            before_settings,
            "what was changed is changed back"
        );
        let at = source.serial().matches('\n').count();
        source.wait_serial(at + 2);
        assert!(!source.serial().contains('T'));
        drop(source);
        succeed(&["verify", text(&file), "--require-digest"]);
        let before = count(&extract(&file, "pc.ram"));
        load_by_qemu(&file, direct_io == "on").goes_on(before);
    }
}

#[test]
fn one_snapshot_goes_into_qemus_by_every_method() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let (file, _) = snapshot(&running(), &folder, "vm.mapped", &[]);
    let before = count(&extract(&file, "pc.ram"));
    for compression in ["none", "zlib", "zstd"] {
        for channels in ["1", "4"] {
            let mut target = waiting();
            target.multifd(channels.parse().unwrap(), compression, "multifd");
            let address = target.listen("tcp:127.0.0.1:0");
            // The UUID comes from the companion.
            let args = [
                "send",
                text(&file),
                "--to",
                &address,
                "--channels",
                channels,
                "--compression",
                compression,
            ];
            succeed(&args);
            target.wait_completed();
            target.goes_on(before);
        }
        let mut target = waiting();
        let monitor = target.monitor.clone();
        let args = [
            "restore",
            "--qmp",
            text(&monitor),
            text(&file),
            "--compression",
            compression,
            "--json",
        ];
        assert_eq!(json(&succeed(&args))["compression"], compression);
        target.goes_on(before);
    }
}

#[test]
fn a_file_qemu_wrote_is_read_checked_and_sent_on() {
    if program().is_none() {
        return;
    }
    for direct_io in [false, true] {
        let folder = folder();
        let file = folder.path().join("qemu.mapped");
        let mut source = running();
        source.mapped_ram(2, direct_io);
        source.migrate(&format!("file:{}", file.display()));
        source.wait_completed();
        let expected = source.ram_bytes();
        drop(source);

        let inspected = json(&succeed(&["inspect", text(&file), "--json"]));
        assert!(
            inspected["machine"]
                .as_str()
                .unwrap()
                .starts_with("pc-i440fx-")
        );
        assert_eq!(inspected["capabilities"], object!(["mapped-ram"]));
        assert_eq!(inspected["blocks"][0]["name"], "pc.ram");
        assert_eq!(inspected["blocks"][0]["bytes"], 16 << 20);
        let devices = inspected["devices"].as_array().unwrap();
        assert!(
            devices
                .iter()
                .any(|device| device["name"] == "cpu" && device["bytes"].as_u64() > Some(1000))
        );
        let verified = json(&succeed(&["verify", text(&file), "--json"]));
        assert_eq!(
            (&verified["ok"], &verified["digest"]),
            (&object!(true), &object!(false))
        );
        let output = run(&["verify", text(&file), "--require-digest"]);
        assert_eq!(output.status.code(), Some(1));
        let ram = extract(&file, "pc.ram");
        assert!(ram == expected, "direct I/O {direct_io}");

        let mut target = waiting();
        target.multifd(4, "zstd", "multifd");
        let address = target.listen("tcp:127.0.0.1:0");
        let mut args = vec![
            "send",
            text(&file),
            "--to",
            &address,
            "--channels",
            "4",
            "--compression",
            "zstd",
        ];
        args.extend(["--uuid", UUID]);
        succeed(&args);
        target.wait_completed();
        target.goes_on(count(&ram));
    }
}

#[test]
fn a_file_is_restored_by_every_way() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let (file, _) = snapshot(&running(), &folder, "vm.mapped", &[]);
    let before = count(&extract(&file, "pc.ram"));
    for more in [
        ["--via", "file"].as_slice(),
        &["--via", "file", "--direct-io", "on"],
        &["--via", "auto", "--verify"],
        &["--via", "socket"],
        &["--via", "tcp:127.0.0.1:0", "--zero-pages", "none"],
        &["--zero-pages", "legacy"],
    ] {
        let mut target = waiting();
        let settings_before = settings(&mut target);
        let monitor = target.monitor.clone();
        let args = ["restore", "--json", "--qmp", text(&monitor), text(&file)];
        let result = json(&succeed(&[&args, more].concat()));
        let by_qemu = more.contains(&"file") || more.contains(&"auto");
        assert_eq!(result["by_qemu"], by_qemu, "{more:?}");
        assert_eq!(settings(&mut target), settings_before, "{more:?}");
        target.goes_on(before);
    }
    for (more, expected) in [
        (
            ["--via", "file", "--compression", "zstd"].as_slice(),
            "--compression is for sockets",
        ),
        (
            &["--via", "socket", "--direct-io", "on"],
            "goes with --via file only",
        ),
        (&["--verify=background"], "is for --instant"),
    ] {
        let mut target = waiting();
        let monitor = target.monitor.clone();
        let args = ["restore", "--qmp", text(&monitor), text(&file)];
        let output = run(&[&args, more].concat());
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{said}");
        assert_eq!(target.state(), "inmigrate");
    }
}

#[test]
fn a_snapshot_may_start_within_a_larger_file() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let theirs = folder.path().join("theirs");
    std::fs::write(&theirs, vec![0xee; 5 << 20]).unwrap();
    let mut source = running();
    source.mapped_ram(2, false);
    source.migrate(&format!("file:{},offset=0x300000", theirs.display()));
    source.wait_completed();
    let expected = source.ram_bytes();
    drop(source);
    let snapshot = mapped::load(&File::open(&theirs).unwrap(), 3 << 20);
    assert!(contents(snapshot.ram.find("pc.ram").unwrap()) == expected);

    let ours = folder.path().join("ours");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&ours)
        .unwrap();
    mapped::write(&file, 0x0070_1000, &snapshot);
    let again = mapped::load(&file, 0x0070_1000);
    assert!(contents(again.ram.find("pc.ram").unwrap()) == expected);
    // The program has QEMU read it from there.
    let mut target = waiting();
    let monitor = target.monitor.clone();
    succeed(&[
        "restore",
        "--via",
        "file",
        "--qmp",
        text(&monitor),
        text(&ours),
        "--offset",
        "7344128",
    ]);
    target.goes_on(count(&expected));
    let mut target = waiting();
    target.mapped_ram(2, false);
    let uri = format!("file:{},offset=0x701000", ours.display());
    target.execute("migrate-incoming", &object!({ "uri": uri }));
    target.wait_completed();
    target.goes_on(count(&expected));
}

#[test]
fn five_hops_over_sockets_and_files() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    // 1: by the monitor, into a file of ours.
    let (one, _) = snapshot(&running(), &folder, "one", &["--compression", "zlib"]);
    let expected = extract(&one, "pc.ram");
    // 2: QEMU loads the file, and migrates it to us over sockets: 3.
    let mut qemu = load_by_qemu(&one, false);
    assert!(qemu.ram_bytes() == expected);
    let mut again = Qemu::start(&Machine {
        incoming: true,
        ..machine()
    });
    again.multifd(2, "zstd", "multifd");
    let socket = format!("unix:{}", folder.path().join("hop").display());
    again.listen(&socket);
    succeed(&[
        "send",
        text(&one),
        "--to",
        &socket,
        "--channels",
        "2",
        "--compression",
        "zstd",
    ]);
    again.wait_completed();
    assert!(again.ram_bytes() == expected);
    let three = folder.path().join("three");
    let recv = Recv::start("tcp:127.0.0.1:0", &three, &[]);
    again.migrate(&recv.address);
    let received = recv.succeed();
    assert_eq!(received["compression"], "zstd");
    drop(again);
    assert!(extract(&three, "pc.ram") == expected);
    // 4: our file, sent to another of ours.
    let four = folder.path().join("four");
    let recv = Recv::start(&socket, &four, &["--direct-io", "auto"]);
    succeed(&[
        "send",
        text(&three),
        "--to",
        &recv.address,
        "--channels",
        "3",
    ]);
    recv.succeed();
    assert_eq!(
        json(&succeed(&["diff", text(&one), text(&four), "--json"]))["changed_pages"],
        0
    );
    // 5: the last file, loaded by QEMU itself; and the guest of the second hop still waits where it
    // was.
    load_by_qemu(&four, true).goes_on(count(&expected));
    qemu.goes_on(count(&expected));
}

#[test]
fn a_core_of_guest_memory_opens_in_the_usual_tools() {
    if program().is_none() {
        return;
    }
    let folder = folder();
    let (file, _) = snapshot(&running(), &folder, "vm.mapped", &[]);
    let core = folder.path().join("core.elf");
    succeed(&["extract", text(&file), "--elf", text(&core)]);
    let output = std::process::Command::new("readelf")
        .args(["-hl", text(&core)])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{shown}"
    );
    for expected in [
        "CORE (Core file)",
        "Advanced Micro Devices X86-64",
        "0x0000000001000000",
        "0x00000000fffc0000",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let gdb = ["-nx", "-batch", "-ex", "x/2xw 0x8000", "-c", text(&core)];
    let output = std::process::Command::new("gdb")
        .args(gdb)
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!(
        "0x8000:\t0x4744464d\t{:#010x}",
        count(&extract(&file, "pc.ram"))
    );
    assert!(shown.contains(&expected), "{expected}: {shown}");
    let svg = folder.path().join("map.svg");
    let output = succeed(&["inspect", text(&file), "--svg", text(&svg)]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains("pc.ram, 4 pages a cell:")
            && shown.contains('█')
            && shown.contains("\ncpu "),
        "{shown}"
    );
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg "));
}
