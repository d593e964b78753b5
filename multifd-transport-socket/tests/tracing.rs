//! The feature `tracing`: what sockets decide by themselves is an event.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used)]

use multifd_core::{
    Gathering, MainListener, MainTransport, Plain, Receiver, ReceiverConfig, Sender, SenderConfig,
    SyncScope, WriteFlags,
};
use multifd_testing::{Trace, guest, write};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Sends 16 pages without copies if that can be, else with.
fn transfer(listener: &mut SocketListener, transport: &SocketTransport) {
    let mut main = transport.connect_main().unwrap();
    main.write_all(b"QEVM").unwrap();
    let source = guest("pc.ram", 16);
    (0..16).for_each(|page| write(&source, page, "contents"));
    let config = SenderConfig::default()
        .channels(1)
        .flags(WriteFlags { zero_copy: true });
    let mut sender = Sender::start(source, &Plain, transport, &config).unwrap();
    sender.queue_range(0, 0, 16 * 4096).unwrap();
    let syncing = std::thread::spawn(move || {
        sender.sync(SyncScope::Peer).unwrap();
        sender.finish().unwrap();
    });
    let mut arriving = listener.accept_main().unwrap();
    arriving.read_exact(&mut [0; 4]).unwrap();
    let mut receiver = Receiver::new(guest("pc.ram", 16), ReceiverConfig::default()).unwrap();
    receiver
        .attach_all(listener, Some(1), Gathering::Due)
        .unwrap();
    receiver.wait_sync().unwrap();
    syncing.join().unwrap();
    receiver.finish().unwrap();
}

#[test]
fn refusals_and_fallbacks_are_events() {
    let trace = Trace::start();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}/socket", folder.path().display());
    let options = SocketOptions::default().zero_copy_fallback(true);
    let mut listener = SocketListener::bind(&address.parse().unwrap(), options).unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), options);
    transfer(&mut listener, &transport);

    let options = options.stall(std::time::Duration::from_millis(300));
    let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let address = listener.address().unwrap().to_string();
    let mut stranger = TcpStream::connect(address.trim_start_matches("tcp:")).unwrap();
    stranger.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), options);
    let mut main = transport.connect_main().unwrap();
    main.write_all(b"QEVM").unwrap();
    listener.accept_main().unwrap();
    // Turned away, now or before.
    let _ = stranger.read_to_end(&mut Vec::new());
    let lines = trace.lines();
    for text in ["falling back to copying", "connection turned away"] {
        assert!(lines.iter().any(|line| line.contains(text)), "{lines:#?}");
    }
}
