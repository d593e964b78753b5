//! A file as a receiver's destination, and the engine's rules for fixed places.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::memory::PlainWriter;
use multifd_core::packet::MappedRamLayout;
use multifd_core::{
    Error, Plain, RamMap, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope,
};
use multifd_testing::{Pipes, bytes, fixed_places_conformance, guest, write};
use multifd_transport_file::{
    DirectIo, FileDestination, FileError, FileTransport, PlacedBlock, load,
};
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

const PAGES: u64 = 700;

fn placed(name: &str) -> Vec<PlacedBlock> {
    vec![PlacedBlock {
        name: name.into(),
        layout: MappedRamLayout::place(0, PAGES * 4096, 4096).unwrap(),
    }]
}

fn contents(mut file: File) -> Vec<u8> {
    let mut all = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut all).unwrap();
    all
}

fn loaded(file: &File, pages: u64, blocks: &[PlacedBlock]) -> RamMap {
    let target = guest("pc.ram", pages);
    load(file, blocks, &target, 2, DirectIo::Off, &|| {
        Box::new(PlainWriter)
    })
    .unwrap();
    target
}

#[test]
fn a_file_keeps_the_rules_of_fixed_places() {
    for direct in [DirectIo::Off, DirectIo::IfPossible] {
        let files = RefCell::new(Vec::new());
        fixed_places_conformance(
            PAGES,
            || {
                let file = tempfile::tempfile_in("/var/tmp").unwrap();
                files.borrow_mut().push(file.try_clone().unwrap());
                FileTransport::new(file, placed("pc.ram"), direct).unwrap()
            },
            |transport| {
                transport.finish().unwrap();
                let file = files.borrow_mut().pop().unwrap();
                bytes(&loaded(&file, PAGES, &placed("pc.ram")))
            },
        );
    }
}

/// Changes memory for a round: some pages written, some cleared that were not.
fn change(source: &RamMap, round: u64) {
    for page in (0..PAGES).filter(|page| page % 7 == round || page % 11 == 0) {
        write(source, page, &format!("round {round}, page {page}"));
    }
    for page in (round..PAGES).step_by(13) {
        source.blocks()[0].page(page * 4096).unwrap().clear();
    }
}

#[test]
fn every_round_goes_straight_to_its_place() {
    for channels in [1, 3] {
        let source = guest("pc.ram", PAGES);
        let (streamed, saved) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let destination = FileDestination::new(
            streamed.try_clone().unwrap(),
            placed("pc.ram"),
            DirectIo::Off,
        )
        .unwrap();
        #[cfg(feature = "digest")]
        let destination = destination.with_digest().unwrap();
        let pipes = Pipes::new(channels);
        let mut receiver = Receiver::new(destination.clone(), ReceiverConfig::default()).unwrap();
        for pipe in &pipes.0 {
            receiver.attach(Box::new(pipe.clone())).unwrap();
        }
        let config = SenderConfig::default().channels(channels);
        let mut sender = Sender::start(source.clone(), &Plain, &pipes, &config).unwrap();
        for round in 0..4 {
            change(&source, round);
            sender.queue_range(0, 0, PAGES * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
            receiver.wait_sync().unwrap();
        }
        sender.finish().unwrap();
        receiver.finish().unwrap();
        let written = destination.finish().unwrap();
        assert!(written.pages > 0);
        #[cfg(feature = "digest")]
        {
            let expected = multifd_transport_file::BlockDigest::of(&source.blocks()[0]).unwrap();
            assert_eq!(
                destination.digest().unwrap(),
                [expected],
                "kept while pages came"
            );
        }
        assert!(bytes(&loaded(&streamed, PAGES, &placed("pc.ram"))) == bytes(&source));
        // The same bytes as a file that was written from memory.
        let transport =
            FileTransport::new(saved.try_clone().unwrap(), placed("pc.ram"), DirectIo::Off)
                .unwrap();
        let mut sender =
            Sender::start(source, &Plain, &transport, &SenderConfig::default()).unwrap();
        sender.queue_range(0, 0, PAGES * 4096).unwrap();
        sender.sync(SyncScope::Local).unwrap();
        sender.finish().unwrap();
        assert_eq!(transport.finish().unwrap(), written);
        let (mut streamed, mut saved) = (contents(streamed), contents(saved));
        let len = streamed.len().max(saved.len());
        streamed.resize(len, 0);
        saved.resize(len, 0);
        assert!(streamed == saved, "files differ");
    }
}

#[test]
fn pages_that_have_no_place_are_refused_before_anything_is_written() {
    let receive = |name: &str, pages: u64| {
        let file = tempfile::tempfile().unwrap();
        let destination =
            FileDestination::new(file.try_clone().unwrap(), placed(name), DirectIo::Off).unwrap();
        let pipes = Pipes::new(1);
        let mut receiver = Receiver::new(destination, ReceiverConfig::default()).unwrap();
        receiver.attach(Box::new(pipes.0[0].clone())).unwrap();
        let source = guest("pc.ram", pages);
        write(&source, pages - 1, "beyond");
        let config = SenderConfig::default().channels(1);
        let mut sender = Sender::start(source, &Plain, &pipes, &config).unwrap();
        // The receiver may stop the channel before all of this has reached it.
        let _ = sender.queue_page(0, (pages - 1) * 4096);
        let _ = sender.sync(SyncScope::Peer);
        let error = receiver.wait_sync().unwrap_err();
        assert_eq!(file.metadata().unwrap().len(), 0);
        error
    };
    assert!(matches!(
        receive("other", PAGES),
        Error::UnknownBlock { channel: 0, .. }
    ));
    assert!(matches!(
        receive("pc.ram", PAGES + 1),
        Error::Place { channel: 0, .. }
    ));
}

#[test]
fn a_file_that_cannot_be_written_names_channel_and_block() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("read-only");
    std::fs::write(&path, "").unwrap();
    let destination =
        FileDestination::new(File::open(&path).unwrap(), placed("pc.ram"), DirectIo::Off).unwrap();
    let pipes = Pipes::new(1);
    let mut receiver = Receiver::new(destination, ReceiverConfig::default()).unwrap();
    receiver.attach(Box::new(pipes.0[0].clone())).unwrap();
    let source = guest("pc.ram", PAGES);
    write(&source, 3, "text");
    let config = SenderConfig::default().channels(1);
    let mut sender = Sender::start(source, &Plain, &pipes, &config).unwrap();
    sender.queue_page(0, 3 * 4096).unwrap();
    // The receiver may stop the channel before this has reached it.
    let _ = sender.sync(SyncScope::Peer);
    let error = receiver.wait_sync().unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Destination { channel: 0, .. }),
        "{text}"
    );
    assert!(
        text.contains("pc.ram") && text.contains("writing 4096 bytes"),
        "{text}"
    );
}

#[test]
fn blocks_with_pages_of_different_sizes_are_refused() {
    let mut blocks = placed("pc.ram");
    let layout = MappedRamLayout::place(blocks[0].layout.end(), 1 << 20, 1 << 16).unwrap();
    blocks.push(PlacedBlock {
        name: "other".into(),
        layout,
    });
    let refused = FileDestination::new(tempfile::tempfile().unwrap(), blocks, DirectIo::Off);
    assert!(matches!(
        refused,
        Err(FileError::MixedPageSizes {
            first: 4096,
            other: 65536
        })
    ));
}

#[test]
fn pages_of_a_main_connection_are_written_together() {
    let file = tempfile::tempfile().unwrap();
    let destination =
        FileDestination::new(file.try_clone().unwrap(), placed("pc.ram"), DirectIo::Off).unwrap();
    let mut writer = destination.writer();
    let expected = guest("pc.ram", PAGES);
    let mut put = |page: u64, text: Option<&str>| {
        let mut contents = [0; 4096];
        if let Some(text) = text {
            contents[..text.len()].copy_from_slice(text.as_bytes());
            expected.blocks()[0].page(page * 4096).unwrap().clear();
            write(&expected, page, text);
        } else {
            expected.blocks()[0].page(page * 4096).unwrap().clear();
        }
        let contents = text.map(|_| contents.as_slice());
        writer.put(0, page * 4096, contents).unwrap();
    };
    for page in 0..300 {
        put(page, Some(&format!("page {page}")));
    }
    put(500, Some("alone"));
    put(7, Some("again"));
    put(500, None);
    put(8, None);
    put(PAGES - 1, Some("last"));
    for (block, offset, len) in [
        (1, 0, 4096),
        (0, PAGES * 4096, 4096),
        (0, 1, 4096),
        (0, 0, 512),
    ] {
        let refused = writer.put(block, offset, Some(&[1; 4096][..len]));
        assert!(
            matches!(refused, Err(FileError::Block(_))),
            "{block}, {offset}, {len}"
        );
    }
    writer.flush().unwrap();
    assert_eq!(destination.finish().unwrap().pages, 300);
    assert!(bytes(&loaded(&file, PAGES, &placed("pc.ram"))) == bytes(&expected));
}
