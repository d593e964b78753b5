//! What other QEMUs send, and take: Debian 12's 7.2, other architectures, sources without channels,
//! sections before the RAM.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::other_qemus::Unpacked;
use multifd_tests::program::{Recv, extract, json, run};
use multifd_tests::qemu::{Qemu, program};
use serde_json::{Value, json as object};
use snapshot_steps::{succeed, text};
use std::path::Path;

/// Has a QEMU migrate to `multifd recv`; returns what that said.
fn into_file(qemu: &mut Qemu, file: &Path, more: &[&str]) -> Value {
    let recv = Recv::start("tcp:127.0.0.1:0", file, more);
    qemu.migrate(&recv.address);
    qemu.wait_completed();
    let said = recv.succeed();
    let verified = json(&succeed(&["verify", "--json", text(file)]));
    assert_eq!(verified["ok"], true, "{verified}");
    said
}

/// A block of a stopped QEMU's memory, by its monitor: `len` bytes at a guest physical address.
fn memory(qemu: &mut Qemu, folder: &Path, address: u64, len: u64) -> Vec<u8> {
    let file = folder.join("memory");
    qemu.execute(
        "pmemsave",
        &object!({ "val": address, "size": len, "filename": text(&file) }),
    );
    std::fs::read(&file).unwrap()
}

const RAM: u64 = 16 << 20;

/// Arguments of a machine whose memory holds something: a file, copied into it by a device.
fn filled(folder: &Path, machine: &[&str]) -> Vec<String> {
    let contents = folder.join("contents");
    std::fs::write(&contents, multifd_tests::qemu::seeded(4 << 20, 7)).unwrap();
    let loader = format!(
        "loader,file={},addr=0x400000,force-raw=on",
        contents.display()
    );
    let words = machine.iter().copied().chain(["-device", &loader, "-S"]);
    words.map(String::from).collect()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_source_without_channels() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let args = filled(folder.path(), &["-M", "pc", "-m", "16"]);
    let (mut source, mut target) = Qemu::bare_pair(
        &words(&args),
        &["-M", "pc", "-m", "16", "-incoming", "defer", "-S"],
    );
    let expected = memory(&mut source, folder.path(), 0, RAM);
    let said = into_file(&mut source, &file, &[]);
    assert_eq!(said["channels"], object!([]));
    assert_eq!(said["sync"], "none");
    assert_eq!(said["main"]["guest_bytes"], said["total"]["guest_bytes"]);
    assert!(
        said["main"]["normal_pages"].as_u64() > Some(100)
            && said["main"]["zero_pages"].as_u64() > Some(100)
    );
    succeed(&["restore", "-q", "--qmp", text(&target.monitor), text(&file)]);
    // What lies below 1 MiB is what the machine shows there.
    assert!(memory(&mut target, folder.path(), 1 << 20, RAM - (1 << 20)) == expected[1 << 20..]);
    // Something was asked for that only channels show.
    for (more, missed) in [
        (["--require-checksum"].as_slice(), "not checksums"),
        (
            &["--uuid", "11112222-3333-4444-5555-666677778888"],
            "not the UUID",
        ),
        (&["--compression", "zstd"], "not the compression"),
    ] {
        source.wait_settled();
        source.execute("cont", &object!({}));
        source.execute("stop", &object!({}));
        let recv = Recv::start("tcp:127.0.0.1:0", &folder.path().join("refused"), more);
        source.migrate(&recv.address);
        let said = String::from_utf8_lossy(&recv.finish().stderr).into_owned();
        assert!(
            said.contains("no multifd connections") && said.contains(missed),
            "{said}"
        );
        source.wait_migration(&["completed", "failed"]);
        source.wait_settled();
    }
    source.wait_settled();
    // Channels that were asked for and do not come are missed.
    let recv = Recv::start(
        "tcp:127.0.0.1:0",
        &folder.path().join("other"),
        &["--channels", "2", "--timeout", "5"],
    );
    source.execute("cont", &object!({}));
    source.execute("stop", &object!({}));
    source.migrate(&recv.address);
    let output = recv.finish();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("0 multifd channels connected, expected 2"),
        "{said}"
    );
}

#[test]
fn a_background_snapshot_of_a_running_guest() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/boot.bin");
    let drive = format!("if=floppy,format=raw,readonly=on,file={}", boot.display());
    let machine = ["-M", "pc", "-m", "16", "-drive", &drive];
    let (mut source, mut target) =
        Qemu::bare_pair(&machine, &[&machine[..], &["-incoming", "defer"]].concat());
    source.wait_serial(3);
    let list =
        object!({ "capabilities": [{ "capability": "background-snapshot", "state": true }] });
    if let Err(why) = source.try_execute("migrate-set-capabilities", &list) {
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED: no background snapshots here: {why}");
        return;
    }
    let said = into_file(&mut source, &file, &[]);
    assert_eq!(said["channels"], object!([]));
    assert_eq!(source.state(), "running", "it never stood still for long");
    let count = multifd_tests::guest::count(&extract(&file, "pc.ram"));
    succeed(&["restore", "-q", "--qmp", text(&target.monitor), text(&file)]);
    target.goes_on(count);
}

#[test]
fn pages_of_other_sizes() {
    let (Some(sparc), Some(arm)) = (Unpacked::sparc(), Unpacked::arm()) else {
        return;
    };
    for (which, machine, page_size, multifd) in [
        (&sparc, ["-M", "sun4u", "-m", "32"].as_slice(), 8192, true),
        (&sparc, &["-M", "sun4u", "-m", "32"], 8192, false),
        (
            &arm,
            &["-M", "virt", "-cpu", "cortex-a57", "-m", "32"],
            4096,
            true,
        ),
        (
            &arm,
            &["-M", "virt", "-cpu", "cortex-a57", "-m", "32"],
            4096,
            false,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.mapped");
        let mut source = Qemu::unpacked(which, machine);
        // Firmware runs, and leaves something in memory.
        source.execute("query-status", &object!({}));
        if multifd {
            source.multifd(2, "zstd", "multifd");
        }
        let said = into_file(&mut source, &file, &[]);
        assert_eq!(
            said["channels"].as_array().unwrap().len(),
            if multifd { 2 } else { 0 }
        );
        let inspected = json(&succeed(&["inspect", "--json", text(&file)]));
        assert_eq!(inspected["page_size"], page_size, "{machine:?}");
        drop(source);
        // QEMU itself takes the file, and what is sent of it.
        let mut target = Qemu::unpacked(which, &[machine, &["-incoming", "defer"]].concat());
        target.mapped_ram(2, false);
        target.execute(
            "migrate-incoming",
            &object!({ "uri": format!("file:{}", text(&file)) }),
        );
        target.wait_completed();
        drop(target);
        let target = Qemu::unpacked(which, &[machine, &["-incoming", "defer"]].concat());
        succeed(&["restore", "-q", "--qmp", text(&target.monitor), text(&file)]);
    }
}

#[test]
fn qemu_7_2_both_ways() {
    let Some(old) = Unpacked::old().filter(|_| program().is_some()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // A machine type that both know.
    let machine = ["-M", "pc-i440fx-7.2", "-m", "16"];
    let incoming = [
        "-M",
        "pc-i440fx-7.2",
        "-m",
        "16",
        "-incoming",
        "defer",
        "-S",
    ];
    let args = filled(folder.path(), &machine);
    for compression in ["none", "zlib", "zstd"] {
        for channels in ["1", "3"] {
            let case = format!("{compression} x{channels}");
            let file = folder.path().join(format!("{compression}-{channels}"));
            let mut source = Qemu::unpacked(&old, &words(&args));
            let expected = memory(&mut source, folder.path(), 1 << 20, RAM - (1 << 20));
            let list = object!({ "capabilities": [{ "capability": "multifd", "state": true }] });
            source.execute("migrate-set-capabilities", &list);
            let count: u8 = channels.parse().unwrap();
            let parameters =
                object!({ "multifd-channels": count, "multifd-compression": compression });
            source.execute("migrate-set-parameters", &parameters);
            let said = into_file(&mut source, &file, &["--channels", channels]);
            assert_eq!(
                (&said["sync"], &said["compression"]),
                (&object!("section"), &object!(compression)),
                "{case}"
            );
            drop(source);
            // Into an old one, and into a new one, by socket and by the monitor.
            for old_target in [true, false] {
                let mut target = if old_target {
                    Qemu::unpacked(&old, &incoming)
                } else {
                    Qemu::bare(&incoming)
                };
                let args = [
                    "restore",
                    "-q",
                    "--channels",
                    channels,
                    "--compression",
                    compression,
                    "--qmp",
                ];
                succeed(&[&args[..], &[text(&target.monitor), text(&file)]].concat());
                assert!(
                    memory(&mut target, folder.path(), 1 << 20, RAM - (1 << 20)) == expected,
                    "{case}, old {old_target}"
                );
            }
        }
    }
}

#[test]
fn a_running_guest_of_qemu_7_2() {
    let Some(old) = Unpacked::old().filter(|_| program().is_some()) else {
        return;
    };
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/boot.bin");
    let drive = format!("if=floppy,format=raw,readonly=on,file={}", boot.display());
    let machine = ["-M", "pc-i440fx-7.2", "-m", "64", "-drive", &drive];
    for compression in ["none", "zlib", "zstd"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.mapped");
        let more = [&machine[..], &["-incoming", "defer"]].concat();
        let (mut source, mut target) = Qemu::unpacked_pair(&old, &machine, &more);
        source.wait_serial(3);
        let args = ["snapshot", "--json", "--compression", compression, "--qmp"];
        let output = succeed(&[&args[..], &[text(&source.monitor), "--out", text(&file)]].concat());
        let said = json(&output);
        assert_eq!(said["sync"], "section");
        assert!(said["guest"]["pause_seconds"].as_f64().unwrap() > 0.0);
        let lines = source.serial().matches('\n').count();
        source.wait_serial(lines + 2);
        let count = multifd_tests::guest::count(&extract(&file, "pc.ram"));
        succeed(&["restore", "-q", "--qmp", text(&target.monitor), text(&file)]);
        target.goes_on(count);
    }
}

/// A machine with memory that is plugged in while it runs.
const VIRTIO_MEM: [&str; 12] = [
    "-M",
    "q35",
    "-m",
    "16,maxmem=1G",
    "-object",
    "memory-backend-ram,id=vm0,size=64M",
    "-device",
    "virtio-mem-pci,memdev=vm0,requested-size=0",
    "-object",
    "memory-backend-ram,id=vm1,size=32M",
    "-device",
    "virtio-mem-pci,memdev=vm1,requested-size=0",
];

/// virtio-mem sends a section before the RAM's pages: on the wire, in QEMU's files, in ours, and
/// back.
#[test]
fn sections_before_the_ram() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let machine = VIRTIO_MEM;
    let incoming = [&machine[..], &["-incoming", "defer"]].concat();
    let path = |name: &str| folder.path().join(name);
    let mut source = Qemu::bare(&machine);
    let early = |file: &Path| {
        let inspected = json(&succeed(&["inspect", "--json", text(file)]));
        let devices = inspected["devices"].as_array().unwrap().clone();
        let names = devices
            .iter()
            .map(|device| device["name"].as_str().unwrap());
        assert_eq!(
            names
                .filter(|name| name.ends_with("virtio-mem-device-early"))
                .count(),
            2,
            "{devices:?}"
        );
    };
    // By the monitor; by recv, over channels and without; by QEMU itself.
    succeed(&[
        "snapshot",
        "-q",
        "--qmp",
        text(&source.monitor),
        "--out",
        text(&path("snapshot")),
    ]);
    source.execute("stop", &object!({}));
    into_file(&mut source, &path("without"), &[]);
    source.wait_settled();
    source.execute("cont", &object!({}));
    source.multifd(2, "none", "multifd");
    into_file(&mut source, &path("received"), &[]);
    source.wait_settled();
    source.execute("cont", &object!({}));
    source.mapped_ram(2, false);
    source.migrate(&format!("file:{}", text(&path("qemu"))));
    source.wait_completed();
    drop(source);
    for name in ["snapshot", "without", "received", "qemu"] {
        let file = path(name);
        early(&file);
        assert_eq!(
            json(&succeed(&["verify", "--json", text(&file)]))["ok"],
            true,
            "{name}"
        );
        // Back: by the monitor, by send, by QEMU itself.
        let target = Qemu::bare(&incoming);
        succeed(&["restore", "-q", "--qmp", text(&target.monitor), text(&file)]);
        drop(target);
        let mut target = Qemu::bare(&incoming);
        target.multifd(3, "zstd", "multifd");
        let address = target.listen("tcp:127.0.0.1:0");
        succeed(&[
            "send",
            "-q",
            text(&file),
            "--to",
            &address,
            "--channels",
            "3",
            "--compression",
            "zstd",
        ]);
        target.wait_completed();
        drop(target);
        let mut target = Qemu::bare(&incoming);
        target.mapped_ram(2, false);
        target.execute(
            "migrate-incoming",
            &object!({ "uri": format!("file:{}", text(&file)) }),
        );
        target.wait_completed();
    }
    // From a file to a file, over sockets of ours.
    let recv = Recv::start("tcp:127.0.0.1:0", &path("again"), &["--require-checksum"]);
    succeed(&[
        "send",
        "-q",
        "--checksum",
        text(&path("qemu")),
        "--to",
        &recv.address,
    ]);
    recv.succeed();
    early(&path("again"));
}

/// Save images of libvirt's, and migrations within larger files, in every command that reads one.
#[test]
fn a_migration_within_a_larger_file() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (within, image) = (path("within"), path("vm.save"));
    std::fs::write(&within, vec![0xee; 3 << 20]).unwrap();
    let mut header = b"LibvirtQemudSave".to_vec();
    header.extend(
        [3u32, 5000, 1, 6, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    header.resize(1 << 20, 0);
    std::fs::write(&image, header).unwrap();
    let mut source = Qemu::bare(&["-M", "pc", "-m", "16"]);
    source.mapped_ram(2, false);
    for (file, offset) in [(&within, 0x30_0000), (&image, 0x10_0000)] {
        source.execute("stop", &object!({}));
        source.migrate(&format!("file:{},offset={offset:#x}", file.display()));
        source.wait_completed();
        source.wait_settled();
        source.execute("cont", &object!({}));
    }
    let wrong = run(&["inspect", text(&within)]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("it is not a mapped-ram file"), "{said}");
    for (file, more) in [
        (&within, ["--offset", "0x300000"].as_slice()),
        (&image, &[]),
        (&image, &["--offset", "1M"]),
    ] {
        let with = |args: &[&str]| succeed(&[args, more].concat());
        let inspected = json(&with(&["inspect", "--json", text(file)]));
        assert_eq!(
            inspected["offset"],
            if file == &within { 3 << 20 } else { 1 << 20 }
        );
        assert_eq!(json(&with(&["verify", "--json", text(file)]))["ok"], true);
        let block = path("block");
        with(&[
            "extract",
            "--force",
            text(file),
            "--block",
            "pc.ram",
            "--out",
            text(&block),
        ]);
        assert_eq!(std::fs::metadata(&block).unwrap().len(), 16 << 20);
        with(&["extract", "--force", text(file), "--elf", text(&block)]);
        let other = more
            .iter()
            .map(|word| word.replace("--offset", "--other-offset"))
            .collect::<Vec<_>>();
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        let same = json(&succeed(
            &[&["diff", "--json", text(file), text(file)], more, &other].concat(),
        ));
        assert_eq!(same["same"], true);
        let target = Qemu::bare(&["-M", "pc", "-m", "16", "-incoming", "defer"]);
        with(&["restore", "-q", "--qmp", text(&target.monitor), text(file)]);
        drop(target);
        let recv = Recv::start("tcp:127.0.0.1:0", &path("received"), &["--force"]);
        with(&["send", "-q", text(file), "--to", &recv.address]);
        recv.succeed();
    }
    // Other save images say which format is needed.
    let raw = path("raw.save");
    std::fs::write(&raw, [b"LibvirtQemudSave".as_slice(), &[0; 200]].concat()).unwrap();
    let said = String::from_utf8_lossy(&run(&["inspect", text(&raw)]).stderr).into_owned();
    assert!(said.contains("virsh save --image-format sparse"), "{said}");
}

/// The number of channels is told at once where it can be.
#[test]
fn another_number_of_channels() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut source = Qemu::bare(&["-M", "pc", "-m", "16", "-S"]);
    source.multifd(3, "none", "multifd");
    for (asked, expected) in [
        ("2", "expected 2"),
        ("5", "3 multifd channels connected, expected 5"),
    ] {
        let recv = Recv::start(
            "tcp:127.0.0.1:0",
            &folder.path().join("vm"),
            &["--channels", asked, "--timeout", "120"],
        );
        source.migrate(&recv.address);
        let output = recv.finish();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            said.contains(expected) || said.contains("there are only 2 channels"),
            "{said}"
        );
        source.wait_migration(&["failed", "completed"]);
        source.wait_settled();
        if source.state() == "postmigrate" {
            source.execute("cont", &object!({}));
            source.execute("stop", &object!({}));
        }
    }
}
