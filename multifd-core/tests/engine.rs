//! The engines against each other, and the receiving one against peers that do not keep to the
//! rules.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::Bytes;
use multifd_core::{
    BoxError, CancelHandle, ChannelError, DeviceBuffer, DeviceSink, Error, Plain, Progress, RamMap,
    Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope, ZeroPages,
};
use multifd_packet::{
    Compression, DeviceStateFields, DeviceStatePacket, Flags, Geometry, InitPacket, RamFields,
    RamPacket, Uuid,
};
use multifd_testing::{Pipe, Pipes, bytes, guest, write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn send_config(channels: u8) -> SenderConfig {
    SenderConfig::default().channels(channels)
}

fn receiver(map: &RamMap, pipes: &[Pipe], config: ReceiverConfig) -> Receiver {
    let mut receiver = Receiver::new(map.clone(), config).unwrap();
    for pipe in pipes {
        receiver.attach(Box::new(pipe.clone())).unwrap();
    }
    receiver
}

#[test]
fn every_round_arrives_and_the_latest_contents_win() {
    for channels in [1, 2, 3, 8] {
        let (source, target) = (guest("pc.ram", 700), guest("pc.ram", 700));
        let pipes = Pipes::new(channels);
        let receiver = receiver(&target, &pipes.0, ReceiverConfig::default());
        let mut sender =
            Sender::start(source.clone(), &Plain, &pipes, &send_config(channels)).unwrap();
        for round in 0..4u64 {
            for page in (round..700).step_by(3) {
                write(&source, page, &format!("round {round} page {page}"));
            }
            if round == 3 {
                source.blocks()[0].page(6 * 4096).unwrap().clear();
            }
            sender.queue_range(0, 0, 700 * 4096).unwrap();
            sender.sync(SyncScope::Peer).unwrap();
            receiver.wait_sync().unwrap();
            receiver.wait_identified().unwrap();
            assert!(bytes(&source) == bytes(&target), "round {round}");
        }
        let sent = sender.finish().unwrap();
        let arrived = receiver.finish().unwrap();
        let sent = sent.total();
        assert_eq!(arrived.total(), sent);
        assert_eq!(sent.guest_bytes, 4 * 700 * 4096);
        assert_eq!(sent.normal_pages + sent.zero_pages, 4 * 700);
        assert_eq!(sent.syncs, 4 * u64::from(channels));
        assert!(arrived.rate() > 0.0);
        assert_eq!(arrived.channels.len(), usize::from(channels));
    }
}

#[test]
fn a_bitmap_queues_just_its_pages_and_zero_pages_can_travel_whole() {
    let (source, target) = (guest("pc.ram", 200), guest("pc.ram", 200));
    (0..200).for_each(|page| write(&source, page, "dirty"));
    let pipes = Pipes::new(2);
    let receiver = receiver(&target, &pipes.0, ReceiverConfig::default());
    let config = send_config(2).zero_pages(ZeroPages::Off);
    let mut sender = Sender::start(source, &Plain, &pipes, &config).unwrap();
    sender.queue_bitmap(0, &[1, 1 << 63, 0b110]).unwrap();
    sender.queue_page(0, 5 * 4096).unwrap();
    assert!(matches!(
        sender.queue_page(0, 200 * 4096),
        Err(Error::Block(_))
    ));
    assert!(matches!(
        sender.queue_page(0, 12),
        Err(Error::Misconfigured(_))
    ));
    assert!(matches!(
        sender.queue_page(1, 0),
        Err(Error::NoSuchBlock {
            index: 1,
            blocks: 1
        })
    ));
    assert!(matches!(
        sender.queue_range(0, 4096, 200 * 4096),
        Err(Error::Block(_))
    ));
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    let sent = sender.finish().unwrap().total();
    receiver.finish().unwrap();
    assert_eq!((sent.normal_pages, sent.zero_pages), (5, 0));
    let written: Vec<u64> = (0..200)
        .filter(|page| !target.blocks()[0].page(page * 4096).unwrap().is_zero())
        .collect();
    assert_eq!(written, [0, 5, 127, 129, 130]);
}

#[derive(Default)]
struct Taken(Mutex<Vec<DeviceBuffer>>);

impl DeviceSink for Taken {
    fn take(&self, buffers: DeviceBuffer) -> Result<(), BoxError> {
        if buffers.label == "refuse me" {
            return Err("not today".into());
        }
        self.0.lock().unwrap().push(buffers);
        Ok(())
    }
}

fn state(label: &str, instance: u32, len: usize) -> DeviceBuffer {
    DeviceBuffer {
        label: label.into(),
        instance,
        data: Bytes::from(vec![instance as u8; len]),
    }
}

#[test]
fn device_state_travels_beside_pages() {
    let (source, target) = (guest("pc.ram", 50), guest("pc.ram", 50));
    write(&source, 7, "page");
    let pipes = Pipes::new(2);
    let taken = Arc::new(Taken::default());
    let config =
        ReceiverConfig::default().device_state(Some(Arc::clone(&taken) as Arc<dyn DeviceSink>));
    let receiver = receiver(&target, &pipes.0, config);
    let mut sender = Sender::start(source.clone(), &Plain, &pipes, &send_config(2)).unwrap();
    for instance in 1..=20 {
        sender
            .queue_buffer(state("vfio", instance, instance as usize * 1000))
            .unwrap();
    }
    assert!(matches!(
        sender.queue_buffer(state("empty", 0, 0)),
        Err(Error::Misconfigured(_))
    ));
    sender.queue_range(0, 0, 50 * 4096).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    assert_eq!(sender.finish().unwrap().total().buffer_bytes, 210_000);
    receiver.finish().unwrap();
    let mut taken: Vec<_> = taken.0.lock().unwrap().drain(..).collect();
    taken.sort_by_key(|buffers| buffers.instance);
    assert_eq!(taken.len(), 20);
    for (buffers, instance) in taken.iter().zip(1u32..) {
        assert_eq!(
            (buffers.label.as_str(), buffers.instance),
            ("vfio", instance)
        );
        assert_eq!(buffers.data, vec![instance as u8; instance as usize * 1000]);
    }
    assert!(bytes(&source) == bytes(&target));
}

#[test]
fn the_first_error_ends_every_channel_and_no_thread_is_left() {
    let source = guest("pc.ram", 4000);
    (0..4000).for_each(|page| write(&source, page, "x"));
    let mut pipes = Pipes::new(4);
    pipes.0[2].fail_at = Some(3);
    let cancel = CancelHandle::default();
    let config = send_config(4).cancel(cancel.clone());
    let mut sender = Sender::start(source, &Plain, &pipes, &config).unwrap();
    // Nobody reads: every channel would block for ever once its room is used up.
    let error = (0..100)
        .find_map(|_| sender.queue_range(0, 0, 4000 * 4096).err())
        .unwrap();
    assert!(
        matches!(
            &error,
            Error::Channel {
                channel: 2,
                doing: "sending",
                cause: ChannelError::Peer(_)
            }
        ),
        "{error}"
    );
    assert_eq!(error.to_string(), "channel 2: sending: the cable is cut");
    assert!(sender.sync(SyncScope::Peer).is_err());
    drop(sender);
    assert!(cancel.error().is_some());
    assert!(
        pipes.0.iter().all(|pipe| pipe.handles() == 1),
        "a thread kept its channel"
    );
}

#[test]
fn cancelling_wakes_a_receiver_that_waits() {
    let target = guest("pc.ram", 4);
    let pipes = Pipes::new(3);
    let cancel = CancelHandle::default();
    let config = ReceiverConfig::default().cancel(cancel.clone());
    let receiver = receiver(&target, &pipes.0, config);
    let canceller = std::thread::spawn(move || cancel.cancel());
    assert!(matches!(receiver.wait_sync(), Err(Error::Cancelled)));
    assert!(matches!(receiver.finish(), Err(Error::Cancelled)));
    canceller.join().unwrap();
    assert!(pipes.0.iter().all(|pipe| pipe.handles() == 1));
}

/// What a peer writes on one channel, packet by packet.
/// The second field is the number of its next packet.
struct Peer(Vec<u8>, u64);

impl Peer {
    fn new(id: u8, uuid: u8) -> Self {
        let mut bytes = vec![0; 64];
        let init = InitPacket {
            channel: id,
            uuid: Uuid([uuid; 16]),
        };
        init.encode(&mut bytes).unwrap();
        Self(bytes, 0)
    }

    /// Its next packet has this number.
    fn numbered(mut self, next: u64) -> Self {
        self.1 = next;
        self
    }

    fn ram(mut self, flags: Flags, block: &str, normal: &[u64], zero: &[u64]) -> Self {
        let mut packet = vec![0; 1344];
        let fields = RamFields {
            flags,
            payload_len: normal.len() as u32 * 4096,
            packet_num: self.1,
            block,
        };
        RamPacket::encode(
            &fields,
            Geometry::new(4096).unwrap(),
            normal,
            zero,
            &mut packet,
        )
        .unwrap();
        self.1 += 1;
        self.0.extend(packet);
        self.0.extend(vec![b'd'; normal.len() * 4096]);
        self
    }

    fn sync(self) -> Self {
        self.ram(Flags::sync(), "", &[], &[])
    }

    fn device_state(mut self, label: &str, len: u32) -> Self {
        let mut packet = vec![0; 276];
        let fields = DeviceStateFields {
            idstr: label,
            instance_id: 0,
            payload_len: len,
        };
        DeviceStatePacket::encode(&fields, &mut packet).unwrap();
        self.0.extend(packet);
        self.0.extend(vec![0; len as usize]);
        self
    }
}

/// The error a receiver of 16 pages ends with when its channels' peers do this and then end their
/// channels.
fn refused(peers: &[&[u8]], config: ReceiverConfig) -> Error {
    let target = guest("pc.ram", 16);
    let pipes: Vec<Pipe> = peers.iter().map(|bytes| Pipe::script(bytes)).collect();
    let mut receiver = Receiver::new(target, config).unwrap();
    // The first channel's error may be there before the last channel is.
    let mut attached = pipes
        .iter()
        .map(|pipe| receiver.attach(Box::new(pipe.clone())));
    let outcome = attached
        .find(Result::is_err)
        .unwrap_or(Ok(()))
        .and_then(|()| receiver.wait_identified())
        .and_then(|()| receiver.wait_sync())
        .and_then(|()| receiver.finish().map(drop));
    let error = outcome.unwrap_err();
    assert!(
        pipes.iter().all(|pipe| pipe.handles() == 1),
        "a thread kept its channel"
    );
    error
}

#[allow(clippy::needless_pass_by_value)] // Reads better where it is called.
fn refused_one(peer: Peer) -> Error {
    refused(&[&peer.0], ReceiverConfig::default())
}

#[test]
fn peers_that_break_the_rules_are_refused() {
    let data = Flags::data(Compression::None);
    let error = refused_one(Peer::new(0, 0).ram(data, "pc.rom", &[0], &[]));
    assert_eq!(
        error.to_string(),
        "channel 0: there is no RAM block \"pc.rom\""
    );
    let error = refused_one(Peer::new(0, 0).ram(data, "pc.ram", &[0, 16 * 4096], &[]));
    assert!(matches!(error, Error::Place { channel: 0, .. }), "{error}");
    let error = refused_one(Peer::new(0, 0).ram(data, "pc.ram", &[], &[1 << 60]));
    assert!(matches!(error, Error::Place { channel: 0, .. }), "{error}");
    let error = refused_one(Peer::new(3, 0));
    assert!(
        matches!(
            error,
            Error::ChannelOutOfRange {
                channel: 3,
                channels: 1
            }
        ),
        "{error}"
    );
    let error = refused(
        &[&Peer::new(0, 0).0, &Peer::new(0, 0).0],
        ReceiverConfig::default(),
    );
    assert!(
        matches!(error, Error::DuplicateChannel { channel: 0 }),
        "{error}"
    );
    let error = refused(
        &[&Peer::new(0, 1).0, &Peer::new(1, 2).0],
        ReceiverConfig::default(),
    );
    assert!(matches!(error, Error::Uuid { .. }), "{error}");
    let pinned = ReceiverConfig::default().uuid(Some(Uuid([9; 16])));
    let error = refused(&[&Peer::new(0, 1).0], pinned);
    assert!(matches!(error, Error::Uuid { channel: 0, .. }), "{error}");
    let error = refused_one(Peer::new(0, 0));
    assert!(matches!(error, Error::EndedEarly { channel: 0 }), "{error}");
    let error = refused_one(Peer::new(0, 0).sync().sync());
    assert!(
        matches!(error, Error::AfterLastRound { channel: 0 }),
        "{error}"
    );
    let error = refused_one(Peer::new(0, 0).sync().ram(data, "pc.ram", &[0], &[]));
    assert!(
        matches!(error, Error::EndedInRound { channel: 0 }),
        "{error}"
    );
    let error = refused_one(Peer::new(0, 0).device_state("vfio", 9));
    assert!(
        matches!(error, Error::DeviceState { channel: 0, .. }),
        "{error}"
    );
    let mut cut = Peer::new(0, 0).ram(data, "pc.ram", &[0], &[]);
    cut.0.truncate(cut.0.len() - 1);
    let error = refused_one(cut);
    assert!(
        matches!(error, Error::Payload { channel: 0, .. }),
        "{error}"
    );
    for len in [0, 10, 63, 64 + 11, 64 + 1343] {
        let mut cut = Peer::new(0, 0).sync();
        cut.0.truncate(len);
        let error = refused_one(cut);
        assert!(
            matches!(
                &error,
                Error::Channel {
                    cause: ChannelError::Closed { .. },
                    ..
                }
            ),
            "{error}"
        );
    }
    let mut wrong = Peer::new(0, 0);
    wrong.0[0] = 0x16;
    let error = refused_one(wrong);
    assert!(matches!(error, Error::Packet { index: 0, .. }), "{error}");
    let zlib = Peer::new(0, 0).ram(Flags::data(Compression::Zlib), "pc.ram", &[0], &[]);
    let error = refused_one(zlib);
    assert_eq!(
        error.to_string(),
        "channel 0: packets use compression zlib, expected none"
    );
}

#[test]
fn packets_are_numbered_without_gap_or_copy_over_all_channels() {
    let data = Flags::data(Compression::None);
    let page = |peer: Peer, at: u64| peer.ram(data, "pc.ram", &[at * 4096], &[]);
    let two = |one: &Peer, other: &Peer| refused(&[&one.0, &other.0], ReceiverConfig::default());
    // Numbers 0, 1, 3 | 2, 4, 5: whole. Then packet 1 is lost, or replaced by a copy of packet 0,
    // or comes twice.
    let whole = || page(page(Peer::new(0, 0), 0), 1).numbered(3).sync();
    let other = page(Peer::new(1, 0).numbered(2), 2).numbered(4).sync();
    let error = two(&page(Peer::new(0, 0), 0).numbered(3).sync(), &other);
    let Error::MissingPackets {
        found: 4,
        expected: 5,
        channels: 2,
    } = error
    else {
        panic!("{error}");
    };
    let copied = page(page(Peer::new(0, 0), 0).numbered(0), 0)
        .numbered(3)
        .sync();
    assert!(matches!(
        two(&copied, &other),
        Error::RepeatedPacket {
            channel: 0,
            index: 1,
            number: 0
        }
    ));
    // Across channels, too: whichever comes second is refused.
    let error = two(
        &whole(),
        &page(Peer::new(1, 0).numbered(1), 2).numbered(4).sync(),
    );
    assert!(
        matches!(error, Error::RepeatedPacket { number: 1, .. }),
        "{error}"
    );
    let error = two(&whole(), &Peer::new(1, 0).numbered(u64::MAX - 1).sync());
    assert!(
        matches!(error, Error::PacketNumber { channel: 1, number, .. } if number == u64::MAX - 1),
        "{error}"
    );
    // As QEMU before 9.0 does: pages that wait when a round ends are sent with its SYNC's number, 3
    // here, and an empty packet with that number may follow; 1 is nobody's. A copy of the SYNC
    // itself is none of these.
    let waiting = |again: Flags| {
        let sync = Peer::new(0, 0).ram(data, "pc.ram", &[0], &[]).numbered(3);
        let pages = sync.ram(Flags::sync(), "pc.ram", &[4096], &[]);
        pages.numbered(3).ram(again, "pc.ram", &[], &[])
    };
    let outcome = two(&waiting(Flags::sync()), &other);
    assert!(
        matches!(outcome, Error::RepeatedPacket { number: 3, .. }),
        "{outcome}"
    );
    let target = guest("pc.ram", 16);
    let pipes = [&waiting(data), &other].map(|peer| Pipe::script(&peer.0));
    let old = receiver(&target, &pipes, ReceiverConfig::default());
    old.wait_identified().unwrap();
    old.wait_sync().unwrap();
    old.finish().unwrap();
    let target = guest("pc.ram", 16);
    let pipes = [&whole(), &other].map(|peer| Pipe::script(&peer.0));
    let receiver = receiver(&target, &pipes, ReceiverConfig::default());
    receiver.wait_identified().unwrap();
    receiver.wait_sync().unwrap();
    assert_eq!(receiver.finish().unwrap().total().packets, 5);
}

#[test]
fn device_state_has_a_limit_and_a_taker_may_refuse() {
    let config = || {
        ReceiverConfig::default()
            .device_state(Some(Arc::new(Taken::default())))
            .max_device_state(1000)
    };
    let error = refused(&[&Peer::new(0, 0).device_state("vfio", 1001).0], config());
    assert!(
        matches!(
            error,
            Error::Packet {
                channel: 0,
                index: 0,
                ..
            }
        ),
        "{error}"
    );
    let error = refused(
        &[&Peer::new(0, 0).device_state("refuse me", 10).0],
        config(),
    );
    assert!(error.to_string().ends_with("not today"), "{error}");
}

#[test]
fn a_peer_that_falls_silent_is_a_stall_that_names_its_channel() {
    let target = guest("pc.ram", 16);
    let pipes = [Pipe::default(), Pipe::default()];
    pipes[0].feed(&Peer::new(0, 0).sync().0);
    pipes[1].feed(&Peer::new(1, 0).0);
    let config =
        ReceiverConfig::default().progress(Arc::new(Progress::new(Duration::from_millis(100))));
    let receiver = receiver(&target, &pipes, config);
    let error = receiver.wait_sync().unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Channel {
                channel: 1,
                cause: ChannelError::Stalled { .. },
                ..
            }
        ),
        "{error}"
    );
    drop(receiver);
    assert!(pipes.iter().all(|pipe| pipe.handles() == 1));
}

/// Opens its first channel, and no other.
struct OnlyOne(Pipe);

impl multifd_core::Transport for OnlyOne {
    fn open(&self, id: u8) -> Result<Box<dyn multifd_core::SendChannel>, ChannelError> {
        match id {
            0 => Ok(self.0.sender()),
            _ => Err(ChannelError::Peer("nobody is there".into())),
        }
    }
}

#[test]
fn a_start_that_fails_half_way_says_why_to_all() {
    let cancel = CancelHandle::default();
    let config = send_config(3).cancel(cancel.clone());
    let transport = OnlyOne(Pipe::default());
    let error = Sender::start(guest("pc.ram", 1), &Plain, &transport, &config).unwrap_err();
    assert_eq!(error.to_string(), "channel 1: connecting: nobody is there");
    assert_eq!(cancel.error().unwrap().to_string(), error.to_string());
    assert_eq!(
        transport.0.handles(),
        1,
        "the first channel's thread is gone"
    );
}

#[test]
fn too_many_channels_are_refused() {
    let config = ReceiverConfig::default().max_channels(1);
    let mut receiver = Receiver::new(guest("pc.ram", 1), config).unwrap();
    receiver.attach(Box::new(Pipe::default())).unwrap();
    let error = receiver.attach(Box::new(Pipe::default())).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ChannelCount {
                found: 2,
                expected: 1
            }
        ),
        "{error}"
    );
    assert!(Sender::start(RamMap::new(), &Plain, &Pipes(Vec::new()), &send_config(0)).is_err());
}
