//! A private method goes between two of our ends, and a QEMU refuses it.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::packet::{Compression, PrivateCode};
use multifd_core::{
    CancelHandle, IncomingPages, Method, MethodError, PageBatch, PayloadBuf, Plain, Prepare,
    RecvChannel, SenderConfig, Unpack, UnpackError,
};
use multifd_qemu::file::{LoadOptions, SnapshotFile};
use multifd_qemu::{IncomingMigration, OutgoingMigration, ReceiveOptions, SendOptions};
use multifd_tests::program::Recv;
use multifd_tests::qemu::{Machine, Qemu, program};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketTransport};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PRIVATE: Compression = Compression::Private(PrivateCode::new(5).unwrap());

/// The pages as they are, under a private code.
struct Renamed;

impl Method for Renamed {
    fn kind(&self) -> Compression {
        PRIVATE
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(Pages(Plain.preparer()?)))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(Places(Plain.unpacker()?)))
    }
}

struct Pages(Box<dyn Prepare>);

impl Prepare for Pages {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        self.0.prepare(pages, payload)
    }
}

struct Places(Box<dyn Unpack>);

impl Unpack for Places {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        self.0.unpack(pages, channel)
    }
}

/// Sends a snapshot by the private method, and waits for what the destination makes of it.
fn send(file: &Path, to: &str) -> Result<(), String> {
    let snapshot = SnapshotFile::open(file, None)
        .and_then(|file| file.load(&LoadOptions::default()))
        .unwrap();
    let options = SocketOptions::default().stall(Duration::from_secs(5));
    let transport = SocketTransport::new(to.parse().unwrap(), options);
    let cancel = CancelHandle::default();
    let sender = SenderConfig::default().channels(2).cancel(cancel.clone());
    let outcome = OutgoingMigration::connect(&transport, &cancel).and_then(|mut migration| {
        let options = SendOptions::default().sender(sender);
        migration.send(&snapshot, &Renamed, &transport, options)?;
        migration.finish(Duration::from_secs(60))
    });
    outcome.map_err(|error| error.to_string())
}

#[test]
fn a_private_method_is_for_those_who_agreed_on_it() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.mapped");
    let mut source = Qemu::start(&Machine::default());
    source.multifd(2, "none", "multifd");
    let recv = Recv::start("tcp:127.0.0.1:0", &file, &[]);
    source.migrate(&recv.address);
    source.wait_completed();
    recv.succeed();
    let expected = source.ram_bytes();
    drop(source);

    let options = SocketOptions::default();
    let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let to = listener.address().unwrap().to_string();
    let arrived = std::thread::spawn(move || {
        let cancel = CancelHandle::default();
        let mut migration = IncomingMigration::wait(&mut listener, &cancel).unwrap();
        let mut options = ReceiveOptions::default();
        options.engine.methods = vec![Arc::new(Renamed)];
        options.engine.common.cancel = cancel;
        let received = migration.receive(&mut listener, options).unwrap();
        migration.accept().unwrap();
        received
    });
    send(&file, &to).unwrap();
    let received = arrived.join().unwrap();
    assert_eq!(received.methods, [PRIVATE]);
    let ram = &received.snapshot.ram.blocks();
    let block = ram.iter().find(|block| block.name() == "pc.ram").unwrap();
    let mut bytes = vec![0; expected.len()];
    block.region(0, expected.len()).unwrap().copy_to(&mut bytes);
    assert!(bytes == expected);

    let mut target = Qemu::start(&Machine {
        incoming: true,
        ..Machine::default()
    });
    target.multifd(2, "none", "multifd");
    let to = target.listen("tcp:127.0.0.1:0");
    let refused = send(&file, &to).unwrap_err();
    target.wait_ended();
    assert!(
        target.said().contains("multifd"),
        "{refused}: {}",
        target.said()
    );
}
