//! ELF cores beside QEMU's own `dump-guest-memory`: the same memory at the same addresses, the same
//! registers; or a refusal.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::core_files::Core;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::program::{json, run};
use multifd_tests::qemu::{Qemu, program};
use serde_json::json as object;
use snapshot_steps::{succeed, text};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much a core can be made of, without what `multifd snapshot` keeps.
#[derive(Clone, Copy, PartialEq)]
enum Alone {
    /// The device state proves where RAM lies.
    Proved,
    /// Nothing does.
    Refused,
}

/// Dumps a stopped guest by QEMU, takes a snapshot of it, and compares the cores that can be made
/// of that.
fn compare(qemu: &mut Qemu, what: &str, alone: Alone) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name);
    qemu.execute("stop", &object!({}));
    let dump = path("dump");
    qemu.execute(
        "dump-guest-memory",
        &object!({ "paging": false, "protocol": format!("file:{}", text(&dump)) }),
    );
    let view = qemu.execute(
        "human-monitor-command",
        &object!({ "command-line": "info mtree -f" }),
    );
    std::fs::write(path("layout"), view.as_str().unwrap()).unwrap();
    let file = path("vm.mapped");
    let taken = json(&succeed(&[
        "snapshot",
        "--json",
        "--no-space-check",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&file),
    ]));
    assert_eq!(taken["has_layout"], true, "{what}");
    let theirs = Core::open(&dump);
    let extract = |name: &str, more: &[&str]| -> (PathBuf, std::process::Output) {
        let core = path(name);
        let output = run(&[
            &["extract", "--json", text(&file), "--elf", text(&core)],
            more,
        ]
        .concat());
        (core, output)
    };

    let (core, output) = extract("core", &[]);
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(json(&output)["layout"], "companion");
    let ours = Core::open(&core);
    assert_eq!(ours.map(), theirs.map(), "{what}");
    ours.agrees_with(&theirs, what);
    assert!(!theirs.notes_of("QEMU").is_empty());
    assert_eq!(ours.notes_of("QEMU"), theirs.notes_of("QEMU"), "{what}");
    for (mine, other) in ours.notes_of("CORE").iter().zip(theirs.notes_of("CORE")) {
        // QEMU's is a 32-bit one for a guest that is not in long mode.
        assert!(*mine == other || other.len() == 144, "{what}");
    }
    assert_eq!(
        ours.notes_of("CORE").len(),
        theirs.notes_of("CORE").len(),
        "{what}"
    );
    std::fs::remove_file(&core).unwrap();

    // Without what the monitor showed: of QEMU's own files, nobody has kept it.
    std::fs::remove_file(path("vm.mapped.crc")).unwrap();
    let (core, output) = extract("alone", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let inspected = json(&succeed(&["inspect", "--json", text(&file)]));
    if alone == Alone::Proved {
        assert!(output.status.success(), "{what}: {said}");
        assert_eq!(json(&output)["layout"], "device-state");
        assert_eq!(inspected["core"]["layout"], "device-state");
        let ours = Core::open(&core);
        ours.agrees_with(&theirs, what);
        let all = |core: &Core, from: u64| -> u64 {
            let loads = core.loads.iter().filter(|load| {
                load.address >= from && load.address < 0xf000_0000 || load.address >= 1 << 32
            });
            loads.map(|load| load.len).sum()
        };
        // From 1 MiB on, everything but video memory.
        assert_eq!(all(&ours, 1 << 20), all(&theirs, 1 << 20), "{what}");
        std::fs::remove_file(&core).unwrap();
    } else {
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(
            said.contains("--layout") && said.contains("not known"),
            "{what}: {said}"
        );
        assert_eq!(inspected["core"]["layout"], "unknown");
        assert!(!core.exists());
    }
    let (core, output) = extract("given", &["--layout", text(&path("layout"))]);
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(json(&output)["layout"], "given");
    let ours = Core::open(&core);
    assert_eq!(ours.map(), theirs.map(), "{what}");
    ours.agrees_with(&theirs, what);
}

/// A guest that has got past its firmware.
fn booted(args: &str) -> Qemu {
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/boot.bin");
    let drive = format!("if=floppy,format=raw,readonly=on,file={}", boot.display());
    let mut words: Vec<&str> = args.split_whitespace().collect();
    if args.contains("q35") {
        words.extend(["-device", "isa-fdc,id=fdc", "-drive"]);
    } else {
        words.push("-drive");
    }
    words.push(&drive);
    if args.contains("q35") {
        words.pop();
        words.pop();
        let file = format!(
            "file={},format=raw,readonly=on,if=none,id=boot",
            boot.display()
        );
        let mut qemu = Qemu::bare(
            &[
                words.as_slice(),
                &["-drive", &file, "-device", "floppy,drive=boot"],
            ]
            .concat(),
        );
        qemu.wait_serial(2);
        return qemu;
    }
    let mut qemu = Qemu::bare(&words);
    qemu.wait_serial(2);
    qemu
}

#[test]
fn pcs_of_several_sizes() {
    if program().is_none() {
        return;
    }
    for (args, alone) in [
        ("-M pc -m 1G", Alone::Proved),
        ("-M q35 -m 1G -device VGA", Alone::Proved),
        ("-M pc -m 3G -device cirrus-vga", Alone::Proved),
        // Of this much, one GiB lies above 4 GiB.
        ("-M q35 -m 3G", Alone::Proved),
        ("-M pc,max-ram-below-4g=512M -m 1G", Alone::Proved),
        ("-M q35,max-ram-below-4g=1G -m 1536M", Alone::Proved),
        ("-M pc -m 12", Alone::Proved),
    ] {
        compare(&mut booted(args), args, alone);
    }
}

#[test]
fn memory_of_several_pieces() {
    if program().is_none() {
        return;
    }
    let numa = "-M q35 -m 128 -object memory-backend-ram,id=ram-node0,size=64M -object memory-backend-ram,id=ram-node1,size=64M \
                -numa node,nodeid=0,memdev=ram-node0 -numa node,nodeid=1,memdev=ram-node1";
    let dimm = "-M pc -m 64,slots=4,maxmem=1G -object memory-backend-ram,id=mem1,size=128M -device pc-dimm,memdev=mem1";
    // Its name is its own, and video memory is larger.
    let named = "-M q35,memory-backend=mine -m 64 -object memory-backend-ram,id=mine,size=64M -device VGA,vgamem_mb=128";
    let shared = "-M pc -m 32 -object memory-backend-ram,id=shm,size=64M,share=on -device ivshmem-plain,memdev=shm,master=on";
    for (args, alone) in [
        (numa, Alone::Refused),
        (dimm, Alone::Refused),
        (named, Alone::Proved),
        (shared, Alone::Proved),
    ] {
        compare(&mut booted(args), args, alone);
    }
    let mut microvm = Qemu::bare(&["-M", "microvm", "-m", "64", "-S"]);
    compare(&mut microvm, "microvm", Alone::Refused);
}

/// A Linux guest that has plugged a part of its virtio-mem, in long mode on two processors.
#[test]
fn a_linux_guest_with_virtio_mem() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut args = guest.arguments(&folder.path().join("disk"));
    let memory = args.iter_mut().find(|arg| *arg == "256").unwrap();
    *memory = "256,maxmem=1G".into();
    args.extend(
        [
            "-object",
            "memory-backend-ram,id=vmem,size=256M",
            "-device",
            "virtio-mem-pci,memdev=vmem,requested-size=64M",
        ]
        .map(String::from),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut qemu = Qemu::bare(&args);
    let plugged = |qemu: &mut Qemu| {
        let devices = qemu.execute("query-memory-devices", &object!({}));
        devices[0]["data"]["size"].as_u64().unwrap()
    };
    while plugged(&mut qemu) < 64 << 20 || Said::read(&qemu.serial()).memory.is_empty() {
        assert!(!qemu.has_ended());
    }
    compare(&mut qemu, "virtio-mem", Alone::Proved);
}

#[test]
fn a_debugger_shows_the_registers() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let args = guest.arguments(&folder.path().join("disk"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut qemu = Qemu::bare(&args);
    while Said::read(&qemu.serial()).memory.is_empty() {
        assert!(!qemu.has_ended());
    }
    qemu.execute("stop", &object!({}));
    let registers = qemu.execute(
        "human-monitor-command",
        &object!({ "command-line": "info registers" }),
    );
    let registers = registers.as_str().unwrap();
    let find = |name: &str| {
        registers
            .split(name)
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    let file = folder.path().join("vm.mapped");
    let core = folder.path().join("core");
    succeed(&[
        "snapshot",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&file),
    ]);
    succeed(&["extract", text(&file), "--elf", text(&core)]);
    let gdb = [
        "-nx",
        "-batch",
        "-ex",
        "info threads",
        "-ex",
        "p/x $rip",
        "-ex",
        "p/x $rsp",
        "-c",
        text(&core),
    ];
    let output = Command::new("gdb").args(gdb).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in ["RIP=", "RSP="] {
        let value = u64::from_str_radix(&find(name), 16).unwrap();
        assert!(
            shown.contains(&format!("{value:#x}")),
            "{name} {value:#x}: {shown}"
        );
    }
    assert!(
        shown.contains("Thread 1") || shown.contains("LWP 2"),
        "two processors: {shown}"
    );
    // QEMU's note: CR3 is the fourth of the control registers, which stand before the last field.
    let notes = Core::open(&core);
    let note = notes.notes_of("QEMU")[0];
    let cr3 = u64::from_le_bytes(note[440 - 8 - 16..440 - 8 - 8].try_into().unwrap());
    assert_eq!(cr3, u64::from_str_radix(&find("CR3="), 16).unwrap());
    // A page table at that address: its entries are those of a 64-bit kernel.
    let mut table = [0; 4096];
    assert!(notes.read(cr3 & !0xfff, &mut table));
    assert!(table.iter().any(|&byte| byte != 0));
}

#[test]
fn other_machines_are_refused() {
    let Some(arm) = multifd_tests::other_qemus::Unpacked::arm() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let qemu = Qemu::unpacked(
        &arm,
        &["-M", "virt", "-cpu", "cortex-a57", "-m", "64", "-S"],
    );
    succeed(&[
        "snapshot",
        "--qmp",
        text(&qemu.monitor),
        "--out",
        text(&file),
    ]);
    let core = folder.path().join("core");
    let layout = folder.path().join("layout");
    std::fs::write(&layout, " AS \"memory\", root: system\n").unwrap();
    let given = [
        "extract",
        text(&file),
        "--elf",
        text(&core),
        "--layout",
        text(&layout),
    ];
    assert_eq!(run(&given).status.code(), Some(1));
    let output = run(&given[..4]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("cores are written of x86 machines") && said.contains("virt-"),
        "{said}"
    );
    let shown = String::from_utf8_lossy(&succeed(&["inspect", text(&file)]).stdout).into_owned();
    assert!(shown.contains("where memory lies is not known"), "{shown}");
}
