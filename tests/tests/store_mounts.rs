//! Mounted stores: files of snapshots, working sets, and names that are used again.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::program::json;
use multifd_tests::qemu::seeded;
use multifd_tests::stores::{Mounted, image, store, until};
use snapshot_steps::{succeed, text};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

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
}

#[test]
fn what_was_read_first_is_read_ahead_the_next_time() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let raw = place.join("mem");
    std::fs::write(&raw, seeded(4 << 20, 7)).unwrap();
    let name = store(place, "fc");
    succeed(&["store", "import", "-q", "--raw", text(&raw), &name]);
    let working_set = || json(&succeed(&["store", "show", "--json", &name]))["working_set"].clone();
    let start = |more: &[&str]| Mounted::start(&place.join("store"), &place.join("mnt"), more);
    let read = |mount: &Mounted, len: usize| {
        let file = File::open(mount.folder.join("fc/memory")).unwrap();
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, 0).unwrap();
        found
    };
    // A look at what is no memory, or at all of it, is not how a guest starts.
    let mount = start(&[]);
    std::fs::read(mount.folder.join("fc/manifest.json")).unwrap();
    mount.end();
    assert!(working_set().is_null());
    let mount = start(&[]);
    assert!(read(&mount, 4 << 20) == std::fs::read(&raw).unwrap());
    mount.end();
    assert!(working_set().is_null());
    let mount = start(&[]);
    read(&mount, 64 << 10);
    mount.end();
    let recorded = working_set().as_u64().unwrap();
    assert!((1..64).contains(&recorded), "{recorded}");
    let mount = start(&["--only", "fc"]);
    assert!(read(&mount, 4 << 20) == std::fs::read(&raw).unwrap());
    assert!(std::fs::read_dir(mount.folder.join("vm")).is_err());
}

#[test]
fn a_name_that_is_used_again_is_another_snapshot() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let contents: Vec<Vec<u8>> = (7..9).map(|seed| seeded(1 << 20, seed)).collect();
    let name = store(place, "vm");
    let import = |contents: &[u8]| {
        let raw = place.join("mem");
        std::fs::write(&raw, contents).unwrap();
        succeed(&["store", "import", "-q", "--raw", text(&raw), &name]);
    };
    import(&contents[0]);
    let mount = Mounted::start(&place.join("store"), &place.join("mnt"), &[]);
    let path = mount.folder.join("vm/memory");
    let open = File::open(&path).unwrap();
    let mut half = vec![0; 512 << 10];
    open.read_exact_at(&mut half, 0).unwrap();
    assert!(half[..] == contents[0][..512 << 10]);
    succeed(&["store", "rm", &name]);
    import(&contents[1]);
    // What is open stays what it is, whatever gc does, and its working set is not the new one's.
    let at = text(&place.join("store")).to_owned();
    let report = json(&succeed(&["store", "gc", "--json", &at]));
    assert_eq!(report["removed_packs"], 0, "{report}");
    assert!(report["waiting_packs"].as_u64() > Some(0), "{report}");
    open.read_exact_at(&mut half, 512 << 10).unwrap();
    assert!(half[..] == contents[0][512 << 10..]);
    until("the new snapshot is there", || {
        std::fs::read(&path).is_ok_and(|found| found == contents[1])
    });
    drop(open);
    until("gc removes the old one's chunks", || {
        let report = json(&succeed(&["store", "gc", "--json", &at]));
        report["waiting_packs"] == 0
    });
    mount.end();
    succeed(&["verify", &name]);
}
