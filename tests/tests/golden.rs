//! Recorded migrations arrive through our crates as they did at QEMU's own destination.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_compress::{Zlib, Zstd};
use multifd_core::{
    CancelHandle, ChannelError, ChannelSource, Encode, MainConnection, MainListener, Method, Plain,
    RamBlock, ReceiverConfig, RecvChannel, SenderConfig,
};
use multifd_qemu::{
    Limits, MappedFile, ReceiveOptions, Received, SendOptions, Snapshot, SyncStyle, receive, send,
};
use multifd_tests::golden::{Golden, STREAMS};
use multifd_tests::guest::{contents, sha256};
use multifd_tests::mapped;
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::io::{Read, Write};
use std::sync::Arc;

fn methods() -> Vec<Arc<dyn Method>> {
    vec![
        Arc::new(Plain),
        Arc::new(Zlib::default()),
        Arc::new(Zstd::default()),
    ]
}

fn listener() -> (SocketListener, SocketTransport) {
    let options = SocketOptions::default();
    let listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), options);
    (listener, transport)
}

fn options() -> ReceiveOptions {
    ReceiveOptions::default().engine(ReceiverConfig::default().methods(methods()))
}

fn replayed(golden: &Golden) -> Received {
    let (mut listener, transport) = listener();
    std::thread::scope(|scope| {
        scope.spawn(|| golden.replay(&transport));
        let main = listener.accept_main().unwrap();
        receive(main, &mut listener, options()).unwrap()
    })
}

#[test]
fn every_recording_gives_the_right_ram() {
    for name in STREAMS {
        let golden = Golden::load(name);
        let received = replayed(&golden);
        let ram = &received.snapshot.ram;
        assert_eq!(
            sha256(&contents(ram.find("pc.ram").unwrap())),
            golden.ram_sha256(),
            "{name}"
        );
        let names: Vec<_> = received
            .methods
            .iter()
            .map(|method| method.name())
            .collect();
        assert_eq!(names, [golden.meta["compression"].as_str().unwrap()]);
        let channels = golden.meta["channels"].as_u64().unwrap();
        assert_eq!(received.stats.channels.len() as u64, channels);
        let expected = if name.ends_with("persection") {
            SyncStyle::EachSection
        } else {
            SyncStyle::EachRound
        };
        assert_eq!(received.sync, expected, "{name}");
        assert!(received.rounds >= 3, "{name}: {}", received.rounds);
        assert_eq!(received.main_bytes, golden.main().len() as u64);
        let channel_bytes: usize = golden.channels().iter().map(Vec::len).sum();
        assert_eq!(
            received.stats.total().wire_bytes,
            channel_bytes as u64,
            "{name}"
        );
        let machine = &received.snapshot.configuration.machine;
        assert!(machine.starts_with("pc-i440fx-"), "{machine}");
        assert_eq!(received.snapshot.uuid.0[..4], [0x5e, 0xed, 0x5e, 0xed]);
        assert!(
            received
                .snapshot
                .tail
                .vmdesc()
                .unwrap()
                .contains("\"devices\"")
        );
        assert!(golden.main().ends_with(received.snapshot.tail.bytes()));
        let sections = received.snapshot.tail.sections().unwrap();
        assert!(sections.len() > 20);
        let cpu = sections
            .iter()
            .find(|section| section.name == "cpu")
            .unwrap();
        assert!(cpu.size > 1000, "{cpu:?}");
    }
}

#[test]
fn a_vmm_receives_into_its_own_memory() {
    let golden = Golden::load("zlib-2ch");
    let (mut listener, transport) = listener();
    let (made, blocks) = std::sync::mpsc::channel();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| golden.replay(&transport));
        let main = listener.accept_main().unwrap();
        let options = options().memory(Some(Box::new(move |info, page_size| {
            let map = memmap2::MmapMut::map_anon(info.used_length as usize).unwrap();
            made.send((info.name.clone(), map.as_ptr().addr())).unwrap();
            RamBlock::from_mmap(&info.name, map, page_size)
        })));
        receive(main, &mut listener, options).unwrap()
    });
    for (name, address) in blocks {
        let block = received.snapshot.ram.find(&name).unwrap();
        assert_eq!(
            block.page(0).unwrap().as_mut_ptr().addr(),
            address,
            "{name}"
        );
    }
    let ram = received.snapshot.ram.find("pc.ram").unwrap();
    assert_eq!(sha256(&contents(ram)), golden.ram_sha256());
}

fn same(a: &Snapshot, b: &Snapshot) {
    assert_eq!(a.configuration, b.configuration);
    assert_eq!(a.tail, b.tail);
    assert_eq!((a.uuid, a.ram_section), (b.uuid, b.ram_section));
    assert_eq!(a.switchover_start, b.switchover_start);
    assert_eq!(a.blocks(), b.blocks());
    for (one, other) in a.ram.blocks().iter().zip(b.ram.blocks()) {
        assert!(contents(one) == contents(other), "{}", one.name());
    }
}

#[test]
fn what_arrived_goes_on_by_every_method_and_arrives_again() {
    for name in ["none-2ch", "none-2ch-persection"] {
        let first = replayed(&Golden::load(name)).snapshot;
        for method in methods() {
            for channels in [1, 4] {
                let (mut listener, transport) = listener();
                let sender = SenderConfig::default().channels(channels);
                let second = std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut main = transport.connect().unwrap();
                        let options = SendOptions::default().sender(sender);
                        let encode = Encode::on_channels(method.as_ref());
                        send(&first, &mut main, encode, &transport, options).unwrap();
                        main.end_writing().unwrap();
                        main.wait_closed().unwrap();
                    });
                    let mut main = listener.accept_main().unwrap();
                    let received = receive(&mut main, &mut listener, options()).unwrap();
                    main.accept().unwrap();
                    received
                });
                assert_eq!(second.methods, [method.kind()]);
                assert_eq!(second.stats.channels.len(), usize::from(channels));
                same(&first, &second.snapshot);
            }
        }
    }
}

#[test]
fn our_main_channel_begins_as_qemus_does() {
    let golden = Golden::load("none-2ch");
    let snapshot = replayed(&golden).snapshot;
    let (mut listener, transport) = listener();
    let wire = std::thread::scope(|scope| {
        scope.spawn(|| {
            let main = transport.connect().unwrap();
            send(&snapshot, main, &Plain, &transport, SendOptions::default()).unwrap();
        });
        let mut main = listener.accept_main().unwrap();
        let drain = |mut from: Box<dyn Read + Send>| {
            let mut all = Vec::new();
            from.read_to_end(&mut all).unwrap();
            all
        };
        let mut main_bytes = Vec::new();
        let channels = [0, 1].map(|_| {
            scope.spawn({
                let channel = multifd_core::ChannelSource::next_channel(&mut listener, true);
                let channel = channel.unwrap().unwrap();
                move || drain(Box::new(Reader(channel)))
            })
        });
        main.read_to_end(&mut main_bytes).unwrap();
        assert!(
            channels
                .map(|thread| thread.join().unwrap())
                .iter()
                .all(|bytes| bytes.len() > 64)
        );
        main_bytes
    });
    // Header, configuration, the whole first section: byte for byte. Then the sections' number may
    // differ, not the end.
    let footer = [0x7e, 0, 0, 0, snapshot.ram_section as u8];
    let setup = wire.windows(5).position(|w| w == footer).unwrap();
    assert!(setup > 100);
    assert_eq!(wire[..setup + 5], golden.main()[..setup + 5]);
    let tail = snapshot.tail.bytes();
    assert!(wire.ends_with(tail) && golden.main().ends_with(tail));
}

/// A channel as a plain reader.
struct Reader(Box<dyn multifd_core::RecvChannel>);

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let one = &mut buffer[..1];
        match self.0.recv_start(one) {
            Ok(multifd_core::Arrival::Message) => Ok(1),
            Ok(_) => Ok(0),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }
}

#[test]
fn a_mapped_ram_file_qemu_wrote_loads_and_one_we_write_reads_the_same() {
    let golden = Golden::load("mapped-2ch");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&golden.files["snapshot.mapped"]).unwrap();
    let snapshot = mapped::load(&file, 0);
    let ram = snapshot.ram.find("pc.ram").unwrap();
    assert_eq!(sha256(&contents(ram)), golden.ram_sha256());

    let ours = tempfile::tempfile().unwrap();
    let (blocks, written) = mapped::write(&ours, 0, &snapshot);
    same(&snapshot, &mapped::load(&ours, 0));

    // The head QEMU wrote is the head we write: configuration, block list, and where everything
    // goes.
    let theirs = MappedFile::read(&file, 0, &Limits::default(), true).unwrap();
    assert_eq!(blocks, theirs.blocks);
    let mut bytes = vec![0; 23_185_500];
    std::os::unix::fs::FileExt::read_at(&ours, &mut bytes, 0).unwrap();
    let qemus = &golden.files["snapshot.mapped"];
    let head = blocks[0].layout.header().bitmap_offset as usize;
    assert_eq!(bytes[..head], qemus[..head]);
    let stored: u64 = blocks
        .iter()
        .map(|block| {
            let at = block.layout.header().bitmap_offset as usize;
            let bitmap = &qemus[at..at + block.layout.bitmap_len() as usize];
            multifd_packet::Bitmap::new(bitmap).count()
        })
        .sum();
    assert_eq!(written.pages, stored, "the same pages are zero");
}

/// A source of channels that is stopped by whoever cancels the transfer just as it is asked for
/// one.
struct CancelledMeanwhile(CancelHandle);

impl ChannelSource for CancelledMeanwhile {
    fn next_channel(&mut self, _: bool) -> Result<Option<Box<dyn RecvChannel>>, ChannelError> {
        self.0.cancel();
        Err(ChannelError::Stopped)
    }
}

#[test]
fn what_a_cancellation_stops_is_not_the_error() {
    let golden = Golden::load("none-2ch");
    let cancel = CancelHandle::default();
    let options = options().cancel(cancel.clone());
    let error = receive(golden.main(), &mut CancelledMeanwhile(cancel), options).unwrap_err();
    assert_eq!(error.to_string(), "the transfer was cancelled");
}
