//! Stores in folders, by the program: snapshots of real QEMUs go in, and guests run from them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_core::RamBlock;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::mapped;
use multifd_tests::program::{Recv, json, path, run, run_measured};
use multifd_tests::qemu::{Qemu, program, seeded};
use snapshot_steps::{running, said, succeed, text, waiting};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// A file with a guest of `mib`, whose first `data` MiB hold something.
fn image(folder: &Path, name: &str, mib: u64, data: usize, seed: u64) -> PathBuf {
    let block = RamBlock::anonymous("pc.ram", mib << 20, 4096).unwrap();
    let contents = seeded(data << 20, seed);
    block
        .region(0, contents.len())
        .unwrap()
        .copy_from(&contents);
    let path = folder.join(name);
    mapped::create(&path, block);
    path
}

/// A `multifd mount` that serves. It is told to end when dropped.
struct Mounted {
    child: Child,
    folder: PathBuf,
}

impl Mounted {
    fn start(store: &Path, folder: &Path, more: &[&str]) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let mut child = Command::new(path())
            .args(["mount", text(store), text(folder)])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("mounted at "), "{line}");
        Self {
            child,
            folder: folder.into(),
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Tells it to end; returns its exit status and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        until("the mount ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        let status = self.child.wait().unwrap().code();
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (status, said)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal("TERM");
            let _ = self.child.wait();
        }
        let _ = Command::new("umount")
            .args(["-l", text(&self.folder)])
            .output();
    }
}

fn store(folder: &Path, name: &str) -> String {
    format!("store:{}#{name}", folder.join("store").display())
}

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
fn a_mount_has_the_files_and_ends_when_it_is_told_to() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 64, 8, 1);
    succeed(&["store", "import", "-q", text(&file), &store(place, "vm")]);
    // Memory as another monitor writes it, and what it keeps beside it.
    let raw = place.join("mem");
    std::fs::write(&raw, seeded(4 << 20, 7)).unwrap();
    let state = place.join("vm.state");
    std::fs::write(&state, b"state of a microVM").unwrap();
    let beside = format!("vmstate={}", text(&state));
    let args = [
        "store",
        "import",
        "-q",
        "--raw",
        text(&raw),
        &store(place, "fc"),
        "--attach",
        &beside,
    ];
    succeed(&args);
    let mount = Mounted::start(&place.join("store"), &place.join("mnt"), &[]);
    let at = |path: &str| mount.folder.join(path);
    let mut names: Vec<_> = std::fs::read_dir(&mount.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["fc", "vm"]);
    succeed(&["diff", text(&file), text(&at("vm/vm.mapped"))]);
    assert!(std::fs::read(at("vm/vm.mapped")).unwrap() == std::fs::read(&file).unwrap());
    assert!(std::fs::read(at("fc/memory")).unwrap() == std::fs::read(&raw).unwrap());
    assert_eq!(
        std::fs::read(at("fc/vmstate")).unwrap(),
        b"state of a microVM"
    );
    let manifest = std::fs::read(at("fc/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["name"], "fc");
    // Mapped privately, as a monitor does, and written to.
    let memory = File::open(at("fc/memory")).unwrap();
    // SAFETY: the file does not change.
    #[allow(unsafe_code)]
    let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&memory).unwrap() };
    assert!(map[..] == std::fs::read(&raw).unwrap()[..]);
    map[..3].copy_from_slice(b"new");
    assert_eq!(
        std::fs::read(at("fc/memory")).unwrap()[..8],
        std::fs::read(&raw).unwrap()[..8]
    );
    // Holes are holes, and nothing can be written.
    let mut guest = File::open(at("vm/ram/pc.ram")).unwrap();
    assert_eq!(
        std::io::copy(&mut (&guest).take(10), &mut std::io::sink()).unwrap(),
        10
    );
    assert_eq!(guest.seek(SeekFrom::End(0)).unwrap(), 64 << 20);
    for path in ["vm/vm.mapped", "new", "vm/new"] {
        assert!(
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(at(path))
                .is_err()
        );
    }
    assert!(std::fs::remove_file(at("vm/memory")).is_err());
    assert!(File::open(at("none")).is_err() && File::open(at("vm/none")).is_err());
    // A snapshot that comes later is there, too.
    succeed(&["store", "import", "-q", text(&file), &store(place, "later")]);
    assert!(File::open(at("later/vm.mapped")).is_ok());
    // It ends though somebody has files open and mapped.
    let point = mount.folder.clone();
    let (status, said) = mount.end();
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert!(std::fs::read_dir(&point).unwrap().next().is_none());
    drop((map, memory, guest));
    // What was read first is known now.
    let shown = json(&succeed(&["store", "show", "--json", &store(place, "fc")]));
    assert!(shown["working_set"].as_u64() > Some(0), "{shown}");
    let mount = Mounted::start(&place.join("store"), &place.join("mnt"), &["--only", "fc"]);
    assert!(std::fs::read(mount.folder.join("fc/memory")).unwrap() == std::fs::read(&raw).unwrap());
    assert!(std::fs::read_dir(mount.folder.join("vm")).is_err());
}

/// Damages the chunk that holds a place of the guest's memory.
fn damage(folder: &Path) {
    for pack in walk(&folder.join("store/packs")) {
        let file = File::options().read(true).write(true).open(pack).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_damaged_chunk_is_an_error_that_names_it() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let from = store(place, "vm");
    succeed(&["store", "import", "-q", text(&file), &from]);
    damage(place);
    let checked = run(&["verify", "--json", &from]);
    assert_eq!(checked.status.code(), Some(1));
    let problems = json(&checked)["problems"].clone();
    assert!(
        problems[0].as_str().unwrap().contains("pc.ram at 0x"),
        "{problems}"
    );
    let mount = Mounted::start(&place.join("store"), &place.join("mnt"), &[]);
    let memory = File::open(mount.folder.join("vm/memory")).unwrap();
    let (mut good, mut bad) = (0, 0);
    for at in (0..16 << 20).step_by(64 << 10) {
        let mut out = vec![0; 4096];
        match memory.read_exact_at(&mut out, at) {
            Ok(()) => good += 1,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                bad += 1;
            }
        }
    }
    assert!(good > 200 && (1..50).contains(&bad), "{good} {bad}");
    drop(memory);
    let (_, log) = mount.end();
    assert!(
        log.contains("vm/memory: chunk ") && log.contains("pc.ram at 0x"),
        "{log}"
    );
    // Sending it, and writing it out, say so as well, and leave nothing behind.
    let out = place.join("out");
    let exported = run(&["store", "export", "-q", &from, "--out", text(&out)]);
    assert!(said(&exported).contains("chunk ") && !out.exists());
    let copy = place.join("copy");
    let recv = Recv::start("tcp:127.0.0.1:0", &copy, &[]);
    let sent = run(&["send", "-q", &from, "--to", &recv.address]);
    assert_eq!(sent.status.code(), Some(1));
    assert!(said(&sent).contains("chunk "), "{}", said(&sent));
    assert!(!recv.finish().status.success() && !copy.exists());
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
fn an_encrypted_store_needs_its_key_everywhere() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let key = place.join("key");
    let write = |key: &Path, contents: &[u8]| {
        std::fs::write(key, contents).unwrap();
        std::fs::set_permissions(key, PermissionsExt::from_mode(0o600)).unwrap();
    };
    write(&key, &[7; 32]);
    let from = store(place, "vm");
    let with = ["--key-file", text(&key)];
    succeed(&[&["store", "import", "-q", text(&file), &from], &with[..]].concat());
    for args in [
        vec!["store", "ls", text(&place.join("store"))],
        vec!["verify", &from],
        vec!["inspect", &from],
    ] {
        let refused = run(&args);
        assert!(
            said(&refused).contains("--key-file"),
            "{args:?}: {}",
            said(&refused)
        );
        succeed(&[&args[..], &with].concat());
    }
    let out = place.join("out");
    succeed(
        &[
            &["store", "export", "-q", &from, "--out", text(&out)],
            &with[..],
        ]
        .concat(),
    );
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&file).unwrap());
    // Into a store with another key, named by a variable there.
    let second = place.join("key2");
    write(&second, format!("{}\n", "08".repeat(32)).as_bytes());
    let vault = place.join("vault");
    let copy = [
        "store",
        "copy",
        "-q",
        &from,
        text(&vault),
        "--to-key-file",
        text(&second),
    ];
    succeed(&[&copy[..], &with].concat());
    let output = Command::new(path())
        .args(["store", "ls", "--json", text(&vault)])
        .env("MULTIFD_KEY_FILE", &second)
        .output()
        .unwrap();
    assert_eq!(json(&output)["snapshots"][0]["name"], "vm");
    for path in walk(&vault) {
        assert!(!path.display().to_string().ends_with("/vm"));
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
}
