//! A flipped bit anywhere on a channel is caught.
#![cfg(feature = "checksum")]
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::{
    Checksums, Plain, RamMap, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope,
};
use multifd_packet::INIT_PACKET_LEN;
use multifd_testing::{Pipe, Pipes, bytes, guest, write};
use proptest::prelude::*;

/// The bytes of one channel: a full packet, one with zero pages, SYNCs.
fn recorded(checksums: Checksums) -> (RamMap, Vec<u8>) {
    let source = guest("pc.ram", 200);
    for page in 0..150 {
        write(&source, page, &format!("this is page {page}"));
    }
    let pipes = Pipes::new(1);
    let config = SenderConfig::default().channels(1).checksums(checksums);
    let mut sender = Sender::start(source.clone(), &Plain, &pipes, &config).unwrap();
    sender.queue_range(0, 0, 200 * 4096).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    sender.finish().unwrap();
    (source, pipes.0[0].taken())
}

fn received(wire: &[u8], require_checksums: bool) -> Result<RamMap, multifd_core::Error> {
    let target = guest("pc.ram", 200);
    let config = ReceiverConfig::default().require_checksums(require_checksums);
    let mut receiver = Receiver::new(target.clone(), config)?;
    receiver.attach(Box::new(Pipe::script(wire)))?;
    receiver.wait_identified()?;
    receiver.wait_sync()?;
    receiver.finish()?;
    Ok(target)
}

#[test]
fn checksums_are_looked_at_when_they_are_there_and_missed_when_they_must_be() {
    for (sent, required, whole) in [
        (Checksums::Off, false, true),
        (Checksums::Off, true, false),
        (Checksums::On, false, true),
        // Guest pages went straight from memory: nothing vouches for them.
        (Checksums::On, true, false),
        (Checksums::AtRest, false, true),
        (Checksums::AtRest, true, true),
    ] {
        let (source, wire) = recorded(sent);
        match received(&wire, required) {
            Ok(target) => {
                assert!(whole, "{sent:?}, required {required}");
                assert!(bytes(&source) == bytes(&target));
            }
            Err(error) => {
                assert!(!whole, "{sent:?}, required {required}: {error}");
                assert!(error.to_string().contains("carries no checksum"), "{error}");
            }
        }
    }
    // A page that was changed on its way: only a sum over the payload sees it.
    for (sent, seen) in [
        (Checksums::Off, false),
        (Checksums::On, false),
        (Checksums::AtRest, true),
    ] {
        let (_, mut wire) = recorded(sent);
        wire[INIT_PACKET_LEN + 1344 + 5 * 4096 + 99] ^= 4;
        let error = received(&wire, false).err().map(|error| error.to_string());
        let expected = error
            .as_ref()
            .is_some_and(|error| error.contains("the payload's checksum"));
        assert_eq!(expected, seen, "{sent:?}: {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_flipped_bit_anywhere_is_caught(place in any::<proptest::sample::Index>(), in_packet in any::<bool>(), bit in 0u8..8) {
        static WIRE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let wire = WIRE.get_or_init(|| recorded(Checksums::AtRest).1);
        prop_assert!(wire.len() > 150 * 4096);
        // The init packet has no room for a sum. Half of the flips go into the first packet, the
        // rest anywhere after it.
        let body = wire.len() - INIT_PACKET_LEN;
        let at = INIT_PACKET_LEN + place.index(if in_packet { 1344 } else { body });
        let mut damaged = wire.clone();
        damaged[at] ^= 1 << bit;
        prop_assert!(received(wire, true).is_ok());
        prop_assert!(received(&damaged, true).is_err(), "byte {} of {}, bit {}", at, wire.len(), bit);
    }
}

#[test]
fn a_packet_that_is_lost_or_replaced_by_another_is_noticed_though_every_checksum_is_right() {
    let (_, wire) = recorded(Checksums::AtRest);
    // The first packet has 128 pages; what follows it ends in a SYNC.
    let first = INIT_PACKET_LEN..INIT_PACKET_LEN + 1344 + 128 * 4096;
    let lost = [&wire[..first.start], &wire[first.end..]].concat();
    let error = received(&lost, true).unwrap_err();
    assert!(
        matches!(error, multifd_core::Error::MissingPackets { .. }),
        "{error}"
    );
    let twice = [&wire[..first.end], &wire[first.clone()], &wire[first.end..]].concat();
    let error = received(&twice, true).unwrap_err();
    assert!(
        matches!(error, multifd_core::Error::RepeatedPacket { number: 0, .. }),
        "{error}"
    );
    assert!(received(&wire, true).is_ok());
}
