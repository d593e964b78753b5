//! The hook that runs first on every thread of the engines.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::{
    Error, Plain, Receiver, ReceiverConfig, Sender, SenderConfig, SyncScope, ThreadRole,
    ThreadStart,
};
use multifd_testing::{Pipes, guest};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Thread names, and the role each was started for.
type Log = Arc<Mutex<BTreeMap<String, ThreadRole>>>;

fn note(log: &Log) -> ThreadStart {
    let log = Arc::clone(log);
    Arc::new(move |role| {
        let name = std::thread::current().name().unwrap().to_owned();
        assert!(
            log.lock().unwrap().insert(name, role).is_none(),
            "called twice"
        );
    })
}

#[test]
fn every_thread_calls_it_first_and_says_what_it_is_for() {
    let log = Log::default();
    let pipes = Pipes::new(2);
    let config = ReceiverConfig::default().thread_start(Some(note(&log)));
    let mut receiver = Receiver::new(guest("pc.ram", 16), config).unwrap();
    for pipe in &pipes.0 {
        receiver.attach(Box::new(pipe.clone())).unwrap();
    }
    let config = SenderConfig::default().thread_start(Some(note(&log)));
    let mut sender = Sender::start(guest("pc.ram", 16), &Plain, &pipes, &config).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    sender.finish().unwrap();
    receiver.finish().unwrap();
    let expected = [
        ("multifd-recv-0", ThreadRole::Receive { order: 0 }),
        ("multifd-recv-1", ThreadRole::Receive { order: 1 }),
        ("multifd-send-0", ThreadRole::Send { channel: 0 }),
        ("multifd-send-1", ThreadRole::Send { channel: 1 }),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, role)| (name.to_owned(), role)).into();
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn a_hook_that_panics_ends_the_transfer() {
    let pipes = Pipes::new(1);
    let config = SenderConfig::default()
        .channels(1)
        .thread_start(Some(Arc::new(|_| panic!("as asked for"))));
    let mut sender = Sender::start(guest("pc.ram", 16), &Plain, &pipes, &config).unwrap();
    let error = sender.sync(SyncScope::Peer).unwrap_err();
    assert!(matches!(error, Error::Panicked { channel: 0 }), "{error}");
}
