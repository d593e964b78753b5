//! What cannot work together is refused when a transfer is started.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::packet::{Compression, PrivateCode};
use multifd_core::{
    Capabilities, ChannelError, Checksums, Error, Method, MethodError, Placement, Plain, Prepare,
    Receiver, ReceiverConfig, SendChannel, Sender, SenderConfig, Transport, Unpack, WriteFlags,
};
use multifd_testing::{Pipes, guest};
use std::sync::Arc;

/// A method that is only a kind.
struct Kind(Compression);

impl Method for Kind {
    fn kind(&self) -> Compression {
        self.0
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Plain.preparer()
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Plain.unpacker()
    }
}

/// A transport that is only its capabilities: nothing may be opened.
struct Only(Capabilities);

impl Transport for Only {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Err(ChannelError::Peer("it was opened".into()))
    }

    fn capabilities(&self) -> Capabilities {
        self.0
    }
}

fn refused(method: &Kind, transport: &Only, config: &SenderConfig) -> bool {
    match Sender::start(guest("pc.ram", 1), method, transport, config) {
        Err(Error::Unsupported(_)) => true,
        Err(Error::Channel { .. }) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_transport_gets_only_what_it_can_take() {
    let stream = Only(Capabilities::default());
    let fixed = Only(Capabilities::default().placement(Placement::Fixed));
    let (plain, zstd) = (Kind(Compression::None), Kind(Compression::Zstd));
    let config = SenderConfig::default();
    assert!(!refused(&plain, &stream, &config));
    assert!(!refused(&zstd, &stream, &config));
    assert!(!refused(&plain, &fixed, &config));
    assert!(refused(&zstd, &fixed, &config));
    let zero_copy = config.clone().flags(WriteFlags { zero_copy: true });
    assert!(refused(&plain, &stream, &zero_copy));
    assert!(!refused(
        &plain,
        &Only(Capabilities::default().zero_copy(Ok(()))),
        &zero_copy
    ));
    let checksums = config.checksums(Checksums::On);
    assert!(refused(&plain, &fixed, &checksums));
    let geometry = guest("pc.ram", 1).geometry().unwrap();
    let packets = Sender::start_for_packets(geometry, &plain, &fixed, &SenderConfig::default());
    assert!(matches!(packets, Err(Error::Unsupported(_))));
}

#[test]
fn two_methods_of_one_kind_are_an_error() {
    let private = Compression::Private(PrivateCode::new(2).unwrap());
    let other = Compression::Private(PrivateCode::new(3).unwrap());
    let given = |kinds: [Compression; 3]| {
        let methods = kinds.map(|kind| Arc::new(Kind(kind)) as Arc<dyn Method>);
        let config = ReceiverConfig::default().methods(methods.into());
        Receiver::new(guest("pc.ram", 1), config).map(drop)
    };
    given([Compression::Zstd, private, other]).unwrap();
    for twice in [private, Compression::Zstd] {
        let error = given([Compression::Zstd, private, twice]).unwrap_err();
        assert!(
            matches!(&error, Error::Misconfigured(text) if text.contains(twice.name())),
            "{error}"
        );
    }
}

#[test]
fn blocks_and_channels_that_do_not_exist_are_errors() {
    let config = SenderConfig::default().channels(0);
    let none = Sender::start(guest("pc.ram", 1), &Plain, &Pipes::new(0), &config);
    assert!(matches!(none, Err(Error::Misconfigured(_))));
    let mut sender = Sender::start(
        guest("pc.ram", 1),
        &Plain,
        &Pipes::new(2),
        &SenderConfig::default(),
    )
    .unwrap();
    let missing = sender.queue_page(1, 0);
    assert!(matches!(
        missing,
        Err(Error::NoSuchBlock {
            index: 1,
            blocks: 1
        })
    ));
}
