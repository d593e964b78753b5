//! A source that is killed where its channels owe nothing, at a round's border: over TCP its
//! destination must not take what it has for complete.
#![allow(clippy::unwrap_used)]

use multifd_core::{
    Gathering, MainListener, MainTransport, Plain, Receiver, ReceiverConfig, Sender, SenderConfig,
    SyncScope,
};
use multifd_testing::guest;
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const ADDRESS: &str = "MULTIFD_KILLED_SOURCE";
const CHANNELS: u8 = 3;

/// The source: a process of its own, which this test starts again with an address to connect to.
#[test]
fn source() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    let transport = SocketTransport::new(address.parse().unwrap(), SocketOptions::default());
    let mut main = transport.connect_main().unwrap();
    main.write_all(b"QEVM").unwrap();
    let config = SenderConfig::default().channels(CHANNELS);
    let mut sender = Sender::start(guest("pc.ram", 64), &Plain, &transport, &config).unwrap();
    sender.queue_range(0, 0, 64 * 4096).unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    // Until it is killed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_source_killed_at_a_rounds_border_is_a_failure() {
    let options = SocketOptions::default().stall(Duration::from_secs(20));
    let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let mut source = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "source"])
        .env(ADDRESS, listener.address().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut main = listener.accept_main().unwrap();
    main.connection().accept_unmarked_end(true);
    main.read_exact(&mut [0; 4]).unwrap();
    let mut receiver = Receiver::new(guest("pc.ram", 64), ReceiverConfig::default()).unwrap();
    receiver
        .attach_all(&mut listener, Some(CHANNELS.into()), Gathering::Due)
        .unwrap();
    receiver.wait_sync().unwrap();
    source.kill().unwrap();
    source.wait().unwrap();
    assert!(
        main.read_to_end(&mut Vec::new()).is_err(),
        "the main connection looks complete"
    );
    assert!(receiver.finish().is_err(), "the channels look complete");
}
