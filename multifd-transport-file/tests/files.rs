//! Files as channels, without an engine's peer: what lies in them, how it got there, and what
//! happens when it cannot.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use multifd_core::memory::PlainWriter;
use multifd_core::{
    Error, Iov, Message, PageBatch, Plain, RamBlock, RamMap, RamWriter, Sender, SenderConfig,
    SyncScope, Transport, WriteFlags,
};
use multifd_packet::MappedRamLayout;
use multifd_testing::{bytes, write};
use multifd_transport_file::{
    AtomicFile, BlockReader, DirectIo, FileError, FileTransport, PlacedBlock, StoredPages, load,
    load_raw, map, map_all, map_raw,
};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

const PAGES: u64 = 600;

fn guest() -> RamMap {
    multifd_testing::guest("pc.ram", PAGES)
}

/// Memory that is read into gets nothing beforehand.
fn plain() -> Box<dyn RamWriter> {
    Box::new(PlainWriter)
}

/// A guest whose memory starts at an odd address.
fn crooked_guest() -> RamMap {
    let mut memory = vec![0u8; PAGES as usize * 4096 + 24];
    let base = memory.as_mut_ptr();
    let mut map = RamMap::new();
    // SAFETY: the vector moves into the block as its owner, and nothing else refers to it.
    let block = unsafe {
        RamBlock::from_raw_parts("pc.ram", base.add(24), PAGES as usize * 4096, 4096, memory)
            .unwrap()
    };
    map.add(block).unwrap();
    map
}

fn fill(map: &RamMap) {
    (0..PAGES)
        .filter(|page| page % 5 != 0)
        .for_each(|page| write(map, page, &format!("page {page}")));
}

/// One block, its header `at` bytes into the file.
fn placed(at: u64) -> Vec<PlacedBlock> {
    vec![PlacedBlock {
        name: "pc.ram".into(),
        layout: MappedRamLayout::place(at, PAGES * 4096, 4096).unwrap(),
    }]
}

fn store(
    map: &RamMap,
    file: &File,
    blocks: &[PlacedBlock],
    direct: DirectIo,
    channels: u8,
) -> FileTransport {
    let transport = FileTransport::new(file.try_clone().unwrap(), blocks.to_vec(), direct).unwrap();
    let config = SenderConfig::default().channels(channels);
    let mut sender = Sender::start(map.clone(), &Plain, &transport, &config).unwrap();
    sender.queue_range(0, 0, PAGES * 4096).unwrap();
    sender.sync(SyncScope::Local).unwrap();
    sender.finish().unwrap();
    transport
}

/// A file on a disk: direct I/O means nothing elsewhere.
fn disk_file() -> File {
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn pages_come_back_by_every_kind_of_io_from_memory_however_aligned() {
    for crooked in [false, true] {
        let source = if crooked { crooked_guest() } else { guest() };
        fill(&source);
        for base in [0, 5 << 20] {
            for direct in [DirectIo::Off, DirectIo::On, DirectIo::IfPossible] {
                let (file, blocks) = (disk_file(), placed(base));
                let transport = store(&source, &file, &blocks, direct, 3);
                assert_eq!(transport.is_direct(), direct != DirectIo::Off);
                assert_eq!(transport.finish().unwrap().pages, 480);
                for again in [DirectIo::Off, DirectIo::On] {
                    let target = if crooked { crooked_guest() } else { guest() };
                    write(&target, 5, "what was there before");
                    let loaded = load(&file, &blocks, &target, 2, again, &plain).unwrap();
                    assert_eq!((loaded.pages, loaded.zero_pages), (480, 120));
                    assert!(
                        bytes(&source) == bytes(&target),
                        "{crooked} {base} {direct:?} {again:?}"
                    );
                }
                let mut first = [0; 6];
                file.read_exact_at(&mut first, blocks[0].layout.header().pages_offset + 4096)
                    .unwrap();
                assert_eq!(&first, b"page 1");
            }
        }
    }
}

#[test]
fn a_page_that_becomes_zero_leaves_the_bitmap_and_the_file() {
    let (source, file, blocks) = (guest(), disk_file(), placed(0));
    (0..PAGES).for_each(|page| write(&source, page, "x"));
    let transport =
        FileTransport::new(file.try_clone().unwrap(), blocks.clone(), DirectIo::Off).unwrap();
    let mut sender =
        Sender::start(source.clone(), &Plain, &transport, &SenderConfig::default()).unwrap();
    sender.queue_range(0, 0, PAGES * 4096).unwrap();
    sender.sync(SyncScope::Local).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    for page in 100..300 {
        source.blocks()[0].page(page * 4096).unwrap().clear();
    }
    write(&source, 7, "later");
    sender.queue_range(0, 0, PAGES * 4096).unwrap();
    sender.sync(SyncScope::Local).unwrap();
    sender.finish().unwrap();
    assert_eq!(transport.finish().unwrap().pages, PAGES - 200);
    file.sync_all().unwrap();
    let after = file.metadata().unwrap().blocks();
    // The file system's own bookkeeping may take some.
    assert!(
        after <= before - 190 * 8,
        "200 pages are holes: {before} before, {after} after"
    );
    let stored = StoredPages::read(&file, &blocks[0].layout).unwrap();
    assert!((0..PAGES).all(|page| stored.contains(page) != (100..300).contains(&page)));
    let target = guest();
    load(&file, &blocks, &target, 2, DirectIo::Off, &plain).unwrap();
    assert!(bytes(&source) == bytes(&target));
}

#[test]
fn a_mapping_is_copy_on_write_and_knows_which_pages_are_zero() {
    let (source, file, blocks) = (guest(), disk_file(), placed(0));
    fill(&source);
    store(&source, &file, &blocks, DirectIo::Off, 1)
        .finish()
        .unwrap();
    // What an earlier round left in the place of a page that is zero now.
    let header = *blocks[0].layout.header();
    file.write_all_at(b"stale", header.pages_offset + 10 * 4096)
        .unwrap();
    let block = map(&file, &blocks[0]).unwrap();
    let mut all = vec![0; block.len() as usize];
    block.region(0, all.len()).unwrap().copy_to(&mut all);
    assert!(all == bytes(&source));
    block.page(4096).unwrap().copy_from(b"ours alone");
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, header.pages_offset + 4096)
        .unwrap();
    assert_eq!(&bytes, b"page 1");
    file.set_len(header.pages_offset + 4096).unwrap();
    assert!(matches!(
        map(&file, &blocks[0]),
        Err(FileError::Short { .. })
    ));
}

#[test]
fn all_blocks_are_mapped_with_their_zeros_told() {
    let (source, file, blocks) = (guest(), disk_file(), placed(0));
    fill(&source);
    store(&source, &file, &blocks, DirectIo::Off, 1)
        .finish()
        .unwrap();
    let header = *blocks[0].layout.header();
    file.write_all_at(b"stale", header.pages_offset + 10 * 4096)
        .unwrap();
    let mapped = map_all(&file, &blocks).unwrap();
    let (block, original) = (&mapped.ram.blocks()[0], &source.blocks()[0]);
    for page in 0..PAGES {
        let offset = page * 4096;
        let zero = original.page(offset).unwrap().is_zero();
        assert_eq!(mapped.zeros.is_zero(block, offset), zero, "{page}");
        if !zero {
            let (mut one, mut other) = ([0; 4096], [0; 4096]);
            block.page(offset).unwrap().copy_to(&mut one);
            original.page(offset).unwrap().copy_to(&mut other);
            assert!(one == other, "{page}");
        }
    }
    assert!(
        !block.page(10 * 4096).unwrap().is_zero(),
        "which is why it is told"
    );
}

#[test]
fn a_raw_image_is_mapped_and_its_holes_are_zero() {
    let file = disk_file();
    file.set_len(64 * 4096).unwrap();
    for page in [0, 20, 63] {
        file.write_all_at(b"text", page * 4096).unwrap();
    }
    // Data that is zero.
    file.write_all_at(&[0; 4096], 40 * 4096).unwrap();
    let mapped = map_raw(&file, "pc.ram", 4096).unwrap();
    let block = &mapped.ram.blocks()[0];
    for page in 0..64 {
        let zero = ![0, 20, 63].contains(&page);
        assert_eq!(mapped.zeros.is_zero(block, page * 4096), zero, "{page}");
    }
    file.set_len(4096 + 1).unwrap();
    assert!(matches!(
        map_raw(&file, "pc.ram", 4096),
        Err(FileError::Block(_))
    ));
    file.set_len(0).unwrap();
    assert!(map_raw(&file, "pc.ram", 4096).is_err());
}

#[cfg(feature = "digest")]
#[test]
fn readers_extract_and_compare_what_is_stored() {
    use multifd_transport_file::{changed_pages, extract};
    let (one, other) = (guest(), guest());
    fill(&one);
    fill(&other);
    write(&other, 3, "changed");
    write(&other, 4, "changed");
    write(&other, 500, "was zero");
    let (a, b, blocks) = (disk_file(), disk_file(), placed(0));
    store(&one, &a, &blocks, DirectIo::Off, 2).finish().unwrap();
    store(&other, &b, &blocks, DirectIo::Off, 2)
        .finish()
        .unwrap();
    let (a, b) = (
        BlockReader::new(&a, &blocks[0]).unwrap(),
        BlockReader::new(&b, &blocks[0]).unwrap(),
    );
    let runs = changed_pages(&a, &b).unwrap();
    let found: Vec<_> = runs
        .iter()
        .map(|run| (run.offset / 4096, run.len / 4096))
        .collect();
    assert_eq!(found, [(3, 2), (500, 1)]);
    assert!(changed_pages(&a, &a).unwrap().is_empty());
    let out = tempfile::tempfile().unwrap();
    extract(&a, 4096..PAGES * 4096, &out, 100).unwrap();
    let mut extracted = vec![0; (PAGES as usize - 1) * 4096];
    out.read_at(&mut extracted, 100).unwrap();
    assert!(extracted == multifd_testing::bytes(&one)[4096..]);
}

#[test]
fn files_that_end_early_are_not_whole() {
    let (source, file, blocks) = (guest(), disk_file(), placed(0));
    fill(&source);
    store(&source, &file, &blocks, DirectIo::Off, 1)
        .finish()
        .unwrap();
    let header = *blocks[0].layout.header();
    file.set_len(header.pages_offset + 599 * 4096 + 100)
        .unwrap();
    let error = load(&file, &blocks, &guest(), 2, DirectIo::Off, &plain).unwrap_err();
    assert!(
        matches!(error, FileError::Short { what: "pages", .. }),
        "{error}"
    );
    let reader = BlockReader::new(&file, &blocks[0]).unwrap();
    let error = reader.read(599 * 4096, &mut [0; 4096]).unwrap_err();
    assert!(
        matches!(error, FileError::Short { what: "pages", .. }),
        "{error}"
    );
    file.set_len(header.bitmap_offset + 3).unwrap();
    let error = load(&file, &blocks, &guest(), 2, DirectIo::Off, &plain).unwrap_err();
    assert!(
        matches!(
            error,
            FileError::Short {
                what: "a bitmap",
                ..
            }
        ),
        "{error}"
    );
    let error = load_raw(&file, &guest().blocks()[0], 1, &plain).unwrap_err();
    assert!(matches!(error, FileError::Short { .. }), "{error}");
    let mut other = RamMap::new();
    other
        .add(RamBlock::anonymous("pc.ram", 4096, 4096).unwrap())
        .unwrap();
    let error = load(&file, &[], &other, 1, DirectIo::Off, &plain).unwrap();
    assert_eq!(error.pages, 0);
}

#[test]
fn what_has_no_place_is_refused() {
    let (file, source) = (disk_file(), guest());
    let transport = FileTransport::new(file, placed(0), DirectIo::Off).unwrap();
    let mut channel = transport.open(0).unwrap();
    let useful = transport.capabilities().useful_channels;
    let busy = useful.map(std::num::NonZeroUsize::get);
    assert_eq!(busy, Some(1), "one writes through the page cache at a time");
    let header = [Iov::from(&b"header"[..])];
    channel
        .send(&Message::new(&header, None), WriteFlags::default())
        .unwrap();
    let state = [header[0], Iov::from(&b"device state"[..])];
    let error = channel
        .send(&Message::new(&state, None), WriteFlags::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("device state has no place"),
        "{error}"
    );
    write(&source, 0, "x");
    let batch = PageBatch::from_offsets(&source.blocks()[0], &[0]).unwrap();
    let error = channel
        .send(&Message::new(&state, Some(&batch)), WriteFlags::default())
        .unwrap_err();
    assert!(error.to_string().contains("use the method none"), "{error}");
    let mut other = RamMap::new();
    other
        .add(RamBlock::anonymous("pc.rom", 4096, 4096).unwrap())
        .unwrap();
    let mut sender = Sender::start(other, &Plain, &transport, &SenderConfig::default()).unwrap();
    sender.queue_page(0, 0).unwrap();
    let error = sender.sync(SyncScope::Local).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Channel {
                doing: "sending",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("\"pc.rom\" has no place in the file"),
        "{error}"
    );
}

#[test]
fn room_can_be_set_aside() {
    let (file, blocks) = (disk_file(), placed(0));
    let transport =
        FileTransport::new(file.try_clone().unwrap(), blocks.clone(), DirectIo::Off).unwrap();
    transport.preallocate().unwrap();
    assert!(file.metadata().unwrap().blocks() >= PAGES * 8);
    assert_eq!(file.metadata().unwrap().len(), blocks[0].layout.end());
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("vm.mapped");
    let file = AtomicFile::create(&target, true).unwrap();
    file.file().write_all_at(b"half", 0).unwrap();
    assert!(!target.exists());
    assert_eq!(file.file().metadata().unwrap().mode() & 0o777, 0o600);
    drop(file);
    assert!(names(folder.path()).is_empty());
    for text in ["first", "second"] {
        let file = AtomicFile::create(&target, true).unwrap();
        file.file().write_all_at(text.as_bytes(), 0).unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), text);
        assert_eq!(names(folder.path()), ["vm.mapped"]);
    }
    for bad in [
        folder.path().join("no/such/folder"),
        folder.path().into(),
        "/".into(),
    ] {
        assert!(AtomicFile::create(&bad, true).is_err(), "{}", bad.display());
    }
}

#[test]
fn a_descriptor_is_emptied_if_it_is_not_finished() {
    let passed = tempfile::tempfile().unwrap();
    passed.write_all_at(b"old contents", 0).unwrap();
    let name = format!("/dev/fdset/{}", passed.as_raw_fd());
    let file = AtomicFile::create(Path::new(&name), true).unwrap();
    file.file().write_all_at(b"half", 0).unwrap();
    drop(file);
    assert_eq!(passed.metadata().unwrap().len(), 0);
    let file = AtomicFile::create(Path::new(&name), true).unwrap();
    file.file().write_all_at(b"whole", 0).unwrap();
    file.commit().unwrap();
    assert_eq!(passed.metadata().unwrap().len(), 5);
}

#[test]
fn a_file_system_that_refuses_direct_io_says_so_and_may_be_worked_around() {
    // A ramfs in a mount namespace of this test's own: a file of it is passed on, and the mount
    // goes away.
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t ramfs none {0} && touch {0}/file && exec sleep 600 9<>{0}/file",
        folder.path().display()
    );
    let mut holder = match Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .spawn()
    {
        Ok(holder) => holder,
        Err(error) => return skip(&format!("no unshare: {error}")),
    };
    let path = format!("/proc/{}/fd/9", holder.id());
    let file = loop {
        if let Ok(file) = File::options().read(true).write(true).open(&path) {
            break Some(file);
        }
        if holder.try_wait().unwrap().is_some() {
            break None;
        }
        std::thread::yield_now();
    };
    let Some(file) = file else {
        return skip("only root may mount a ramfs");
    };
    let source = guest();
    fill(&source);
    let error = FileTransport::new(file.try_clone().unwrap(), placed(0), DirectIo::On).unwrap_err();
    assert!(matches!(error, FileError::DirectRefused { .. }), "{error}");
    assert!(error.to_string().contains("refuses direct I/O"), "{error}");
    let transport = store(&source, &file, &placed(0), DirectIo::IfPossible, 2);
    assert!(!transport.is_direct());
    transport.finish().unwrap();
    let error = load(&file, &placed(0), &guest(), 2, DirectIo::On, &plain).unwrap_err();
    assert!(matches!(error, FileError::DirectRefused { .. }), "{error}");
    let target = guest();
    load(&file, &placed(0), &target, 2, DirectIo::IfPossible, &plain).unwrap();
    assert!(bytes(&source) == bytes(&target));
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Says why a test could not run; in CI that is a failure.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run in CI: {why}");
    eprintln!("SKIPPED: {why}");
}
