//! The engine's requirements on a transport, as tests.

use crate::{bytes, guest, write};
use multifd_core::packet::Compression;
use multifd_core::{
    Arrival, ChannelError, ChannelSource, Checksums, Encode, Error, Gathering, Iov, Message,
    Method, MethodError, Placement, Plain, Prepare, Progress, RamMap, Receiver, ReceiverConfig,
    RecvChannel, SendChannel, Sender, SenderConfig, SyncScope, Transport, Unpack, WriteFlags,
    ZeroPages,
};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// A transport, and where its channels come out.
type Ends = (Box<dyn Transport + Send>, Box<dyn ChannelSource + Send>);

/// How long anything may take that should happen at once, on a machine that is busy.
const AT_ONCE: Duration = Duration::from_secs(60);

/// Runs all that the engine asks of a transport of streams. `connect` makes a transport and the
/// source of its channels, both in this process, for the given number of channels.
///
/// | rule | seen from |
/// | --- | --- |
/// | a message arrives whole and in order, however it is cut into IOVs and reads | `send`, `recv_start`, `recv`, `recv_regions` |
/// | a closed channel ends in order; one that is dropped before looks like a failure | `close`, `recv_start` |
/// | `recv_start` says that nothing comes before the clock's deadline; `recv` waits that out | `Arrival::Idle` |
/// | an unblocked call fails, and so does every later one; it is not an orderly end; unblocking twice is harmless | `unblock_handle` |
/// | zero copy is refused where the transport says that it cannot do it | `capabilities` |
/// | whole transfers: rounds, a sender or a receiver that goes away | `Sender`, `Receiver` |
///
/// # Panics
/// If the transport breaks a rule, with the rule.
pub fn transport_conformance(mut connect: impl FnMut(u8) -> Ends) {
    let capabilities = connect(1).0.capabilities();
    assert_eq!(
        capabilities.placement,
        Placement::Stream,
        "this is for streams: see fixed_places_conformance"
    );
    what_cannot_be_is_refused(&mut connect);
    messages_arrive_whole(&mut connect);
    a_closed_channel_ends_and_a_dropped_one_fails(&mut connect);
    silence_is_idle(&mut connect);
    unblocked_calls_fail(&mut connect);
    rounds_arrive(&mut connect);
    ends_that_go_away_are_noticed(&mut connect);
}

fn what_cannot_be_is_refused(connect: &mut impl FnMut(u8) -> Ends) {
    let (transport, _source) = connect(1);
    if transport.capabilities().zero_copy.is_err() {
        let config = SenderConfig::default()
            .channels(1)
            .flags(WriteFlags { zero_copy: true });
        let started = Sender::start(guest("pc.ram", 1), &Plain, transport.as_ref(), &config);
        assert!(
            matches!(started, Err(Error::Unsupported(_))),
            "zero copy must be refused where the transport cannot do it"
        );
    }
}

fn send(channel: &mut dyn SendChannel, pieces: &[&[u8]]) -> Result<(), ChannelError> {
    let iovs: Vec<Iov<'_>> = pieces.iter().map(|piece| Iov::from(*piece)).collect();
    channel.send(&Message::new(&iovs, None), WriteFlags::default())
}

/// Waits out silence.
fn start(channel: &mut dyn RecvChannel, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
    loop {
        match channel.recv_start(buffer) {
            Ok(Arrival::Idle { .. }) => {}
            other => return other,
        }
    }
}

/// The first bytes that a channel sends: what a listener tells channels by.
const HEAD: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

fn messages_arrive_whole(connect: &mut impl FnMut(u8) -> Ends) {
    const LEN: usize = 300_000;
    let ends = connect(1);
    let body: Vec<u8> = (0..LEN).map(|at| (at * 7 % 251) as u8).collect();
    let sent = body.clone();
    let (transport, mut source) = ends;
    let sending = std::thread::spawn(move || {
        let mut channel = transport.open(0).expect("opening channel 0");
        for cut in [1, 999, 4096, LEN] {
            let mut pieces: Vec<&[u8]> = vec![&HEAD, &[]];
            pieces.extend(sent.chunks(cut));
            send(channel.as_mut(), &pieces).expect("sending");
        }
        channel.flush().expect("flushing");
        channel.close().expect("closing");
    });
    let mut channel = source.next_channel(true).unwrap().expect("a channel comes");
    channel.set_progress(Arc::new(Progress::new(AT_ONCE)));
    for _ in 0..4 {
        let mut head = [0; 4];
        assert_eq!(
            start(channel.as_mut(), &mut head).unwrap(),
            Arrival::Message
        );
        assert_eq!(head, HEAD, "the first bytes of a message");
        let mut part = vec![0; LEN / 3];
        channel.recv(&mut part).unwrap();
        assert!(part == body[..part.len()], "bytes differ");
        let rest = LEN - part.len();
        let target = guest("rest", (rest as u64).div_ceil(4096));
        let block = &target.blocks()[0];
        // In two regions, the second of them before the first in memory.
        let (first, second) = (block.region(4096, 40_000).unwrap(), rest - 40_000);
        let (low, high) = (block.region(0, 4096).unwrap(), second - 4096);
        let high = block.region(44_096, high).unwrap();
        channel.recv_regions(&[first, low, high]).unwrap();
        let mut found = Vec::new();
        for region in [first, low, high] {
            let mut bytes = vec![0; region.len()];
            region.copy_to(&mut bytes);
            found.extend(bytes);
        }
        assert!(
            found == body[part.len()..],
            "bytes received into regions differ"
        );
    }
    assert_eq!(start(channel.as_mut(), &mut [0; 4]).unwrap(), Arrival::End);
    sending.join().expect("the sending thread");
}

fn a_closed_channel_ends_and_a_dropped_one_fails(connect: &mut impl FnMut(u8) -> Ends) {
    for closed in [true, false] {
        let ends = connect(1);
        let (transport, mut source) = ends;
        let sending = std::thread::spawn(move || {
            let mut channel = transport.open(0).unwrap();
            send(channel.as_mut(), &[&HEAD]).unwrap();
            channel.flush().unwrap();
            if closed {
                channel.close().unwrap();
            }
        });
        let mut channel = source.next_channel(true).unwrap().unwrap();
        let mut head = [0; 4];
        let first = start(channel.as_mut(), &mut head);
        if closed {
            assert_eq!(first.unwrap(), Arrival::Message);
        }
        // A channel that was dropped may lose what it sent; it must not look ended in order.
        let end = start(channel.as_mut(), &mut [0; 12]);
        if closed {
            assert_eq!(end.unwrap(), Arrival::End, "after an orderly close");
        } else {
            assert!(
                end.is_err(),
                "a channel that was dropped, not closed, looks ended in order"
            );
        }
        sending.join().unwrap();
    }
}

fn silence_is_idle(connect: &mut impl FnMut(u8) -> Ends) {
    let ends = connect(1);
    let (transport, mut source) = ends;
    let (go_on, wait) = channel::<()>();
    let sending = std::thread::spawn(move || {
        let mut channel = transport.open(0).unwrap();
        send(channel.as_mut(), &[&HEAD]).unwrap();
        wait.recv().unwrap();
        // The reader is in the middle of a message now, and hears nothing for a while.
        std::thread::sleep(Duration::from_millis(300));
        send(channel.as_mut(), &[b"the rest"]).unwrap();
        channel.flush().unwrap();
        channel.close().unwrap();
    });
    let mut channel = source.next_channel(true).unwrap().unwrap();
    channel.set_progress(Arc::new(Progress::new(AT_ONCE)));
    let mut head = [0; 4];
    assert_eq!(
        start(channel.as_mut(), &mut head).unwrap(),
        Arrival::Message
    );
    let idle = channel.recv_start(&mut [0; 8]).unwrap();
    assert!(
        matches!(idle, Arrival::Idle { .. }),
        "nothing was sent, and recv_start said {idle:?}"
    );
    go_on.send(()).unwrap();
    let mut rest = [0; 8];
    channel
        .recv(&mut rest)
        .expect("recv must wait for the rest of a message while the clock allows it");
    assert_eq!(&rest, b"the rest");
    assert_eq!(start(channel.as_mut(), &mut [0; 4]).unwrap(), Arrival::End);
    sending.join().unwrap();
}

fn unblocked_calls_fail(connect: &mut impl FnMut(u8) -> Ends) {
    // A reader.
    let (mut sending, mut receiving, _ends) = pair_greeted(connect);
    let unblock = receiving.unblock_handle().unwrap();
    let (started, has_started) = channel();
    let (done, outcome) = channel();
    std::thread::spawn(move || {
        started.send(()).unwrap();
        let first = start(receiving.as_mut(), &mut [0; 4]);
        let later = start(receiving.as_mut(), &mut [0; 4]);
        done.send((first, later)).unwrap();
    });
    has_started.recv().unwrap();
    unblock.unblock();
    unblock.unblock();
    let (first, later) = wait(&outcome, "a blocked read was unblocked and did not return");
    assert!(first.is_err(), "an unblocked read must fail: {first:?}");
    assert!(
        later.is_err(),
        "reads after an unblock must fail: {later:?}"
    );

    // A writer whose peer does not read.
    let (mut sending_2, receiving_2, _ends_2) = pair_greeted(connect);
    let unblock = sending_2.unblock_handle().unwrap();
    let (done, outcome) = channel();
    std::thread::spawn(move || {
        let bulk = vec![7; 1 << 20];
        let first = loop {
            if let Err(error) = send(sending_2.as_mut(), &[&bulk]) {
                break error;
            }
        };
        let later = send(sending_2.as_mut(), &[&bulk]);
        done.send((first, later)).unwrap();
    });
    unblock.unblock();
    let (_, later) = wait(&outcome, "a blocked write was unblocked and did not return");
    assert!(later.is_err(), "writes after an unblock must fail");
    drop(receiving_2);
    let _ = sending.close();
}

/// A channel that has sent its first bytes, which have been read.
fn pair_greeted(
    connect: &mut impl FnMut(u8) -> Ends,
) -> (
    Box<dyn SendChannel>,
    Box<dyn RecvChannel>,
    Box<dyn ChannelSource + Send>,
) {
    let (transport, mut source) = connect(1);
    let sending = std::thread::spawn(move || {
        let mut channel = transport.open(0).unwrap();
        send(channel.as_mut(), &[&HEAD]).unwrap();
        channel
    });
    let mut receiving = source.next_channel(true).unwrap().unwrap();
    assert_eq!(
        start(receiving.as_mut(), &mut [0; 4]).unwrap(),
        Arrival::Message
    );
    (sending.join().unwrap(), receiving, source)
}

fn wait<T>(outcome: &std::sync::mpsc::Receiver<T>, rule: &str) -> T {
    match outcome.recv_timeout(AT_ONCE) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("{rule}"),
        Err(RecvTimeoutError::Disconnected) => panic!("a thread of the test panicked"),
    }
}

const PAGES: u64 = 128 * 6;

/// A receiver on another thread: joins `rounds` rounds, then finishes.
fn receive(
    mut source: Box<dyn ChannelSource + Send>,
    target: RamMap,
    channels: u8,
    rounds: usize,
) -> std::thread::JoinHandle<Result<(), Error>> {
    std::thread::spawn(move || {
        let mut receiver = Receiver::new(target, ReceiverConfig::default())?;
        receiver.attach_all(source.as_mut(), Some(channels.into()), Gathering::Awaited)?;
        for _ in 0..rounds {
            receiver.wait_sync()?;
        }
        receiver.finish().map(drop)
    })
}

fn rounds_arrive(connect: &mut impl FnMut(u8) -> Ends) {
    for channels in [1, 3] {
        let (transport, source_of_channels) = connect(channels);
        let (source, target) = (guest("pc.ram", PAGES), guest("pc.ram", PAGES));
        let receiving = receive(source_of_channels, target.clone(), channels, 2);
        let zero_copy = transport.capabilities().zero_copy.is_ok();
        let config = SenderConfig::default()
            .channels(channels)
            .flags(WriteFlags { zero_copy });
        let mut sender =
            Sender::start(source.clone(), &Plain, transport.as_ref(), &config).unwrap();
        for round in 0..2 {
            for page in (0..PAGES).step_by(3) {
                write(&source, page, &format!("round {round}, page {page}"));
            }
            sender.queue_range(0, 0, PAGES * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
        }
        sender.finish().unwrap();
        receiving.join().unwrap().expect("a whole transfer arrives");
        assert!(
            bytes(&source) == bytes(&target),
            "memory differs after the transfer"
        );
    }
}

fn ends_that_go_away_are_noticed(connect: &mut impl FnMut(u8) -> Ends) {
    // A sender that is dropped at a round's border.
    let (transport, source_of_channels) = connect(2);
    let source = guest("pc.ram", PAGES);
    let receiving = receive(source_of_channels, guest("pc.ram", PAGES), 2, 1);
    // One for each transfer: it holds the handle that ends it.
    let config = || SenderConfig::default().zero_pages(ZeroPages::Off);
    let mut sender = Sender::start(source.clone(), &Plain, transport.as_ref(), &config()).unwrap();
    sender.queue_range(0, 0, PAGES * 4096).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    drop(sender);
    let outcome = receiving.join().unwrap();
    assert!(
        outcome.is_err(),
        "a sender that was dropped at a round's border looks complete"
    );

    // A receiver that is dropped while the sender has more.
    let (transport, mut source_of_channels) = connect(2);
    let receiving = std::thread::spawn(move || {
        let mut receiver =
            Receiver::new(guest("pc.ram", PAGES), ReceiverConfig::default()).unwrap();
        receiver
            .attach_all(source_of_channels.as_mut(), Some(2), Gathering::Awaited)
            .unwrap();
        drop(receiver);
    });
    let mut sender = Sender::start(source, &Plain, transport.as_ref(), &config()).unwrap();
    let cancel = sender.cancel_handle();
    let (done, outcome) = channel();
    std::thread::spawn(move || {
        let outcome = loop {
            let round = sender
                .queue_range(0, 0, PAGES * 4096)
                .and_then(|()| sender.sync(SyncScope::Peer));
            if round.is_err() {
                break round;
            }
        };
        done.send(outcome).unwrap();
    });
    receiving.join().unwrap();
    // A transport may not be able to tell; then cancelling must end the sender.
    let outcome = outcome
        .recv_timeout(Duration::from_secs(3))
        .unwrap_or_else(|_| {
            cancel.cancel();
            wait(&outcome, "a cancelled sender did not end")
        });
    assert!(outcome.is_err());
}

/// Runs all that the engine asks of a transport to fixed places, for guests of one block `pc.ram`
/// with `pages` pages. `read_back` returns the block's bytes from where the transport has put them.
///
/// | rule | seen from |
/// | --- | --- |
/// | it says so | `Transport::capabilities` |
/// | a page is where it belongs; the last round counts, also for pages that became zero | `send` |
/// | compressed pages, checksums and device state are refused before anything is sent | `Sender` |
///
/// # Panics
/// If the transport breaks a rule, with the rule.
pub fn fixed_places_conformance<T: Transport>(
    pages: u64,
    mut open: impl FnMut() -> T,
    mut read_back: impl FnMut(T) -> Vec<u8>,
) {
    let transport = open();
    assert_eq!(transport.capabilities().placement, Placement::Fixed);
    let source = guest("pc.ram", pages);
    for channels in [1, 4] {
        let transport = open();
        let config = SenderConfig::default().channels(channels);
        let mut sender = Sender::start(source.clone(), &Plain, &transport, &config).unwrap();
        for round in 0..3 {
            for page in (0..pages).filter(|page| page % 3 == round || page % 5 == 0) {
                write(&source, page, &format!("round {round}, page {page}"));
            }
            if round == 2 {
                for page in (0..pages).step_by(7) {
                    source.blocks()[0].page(page * 4096).unwrap().clear();
                }
            }
            sender.queue_range(0, 0, pages * 4096).unwrap();
            sender.sync(SyncScope::Local).unwrap();
        }
        sender.finish().unwrap();
        assert!(
            read_back(transport) == bytes(&source),
            "pages are not where they belong"
        );
    }
    for (encode, checksums) in [
        (&Compressed as &dyn Method, Checksums::Off),
        (&Plain, Checksums::On),
    ] {
        let config = SenderConfig::default().checksums(checksums);
        let started = Sender::start(
            source.clone(),
            Encode::on_channels(encode),
            &transport,
            &config,
        );
        assert!(
            matches!(started, Err(Error::Unsupported(_))),
            "compressed pages and checksums have no fixed place"
        );
    }
    let sender = Sender::start(source, &Plain, &transport, &SenderConfig::default()).unwrap();
    let state = multifd_core::DeviceBuffer {
        label: "device".into(),
        instance: 0,
        data: "state".into(),
    };
    assert!(
        matches!(sender.queue_buffer(state), Err(Error::Unsupported(_))),
        "device state has no fixed place"
    );
    sender.finish().unwrap();
}

/// A method of which only the name counts.
struct Compressed;

impl Method for Compressed {
    fn kind(&self) -> Compression {
        Compression::Zlib
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Plain.preparer()
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Plain.unpacker()
    }
}
