//! Both ends of a migration in this process.

use multifd_core::{Plain, Progress, RamBlock, RamMap, SenderConfig};
use multifd_qemu::{
    IncomingMigration, OutgoingMigration, ReceiveOptions, Received, SendOptions, Sent, Snapshot,
};
use multifd_transport_socket::{SocketListener, SocketTransport};
use std::sync::Arc;
use std::time::Duration;

/// RAM with these contents, whose length is a multiple of 4096.
pub fn ram(contents: &[u8]) -> RamMap {
    let block = RamBlock::anonymous("pc.ram", contents.len() as u64, 4096).unwrap();
    block.region(0, contents.len()).unwrap().copy_from(contents);
    let mut ram = RamMap::new();
    ram.add(block).unwrap();
    ram
}

/// How one is made.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// Channels.
    pub channels: u8,
    /// Whether the receiver is told how many there are.
    pub pinned: bool,
    /// How long nothing may move.
    pub stall: Duration,
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            channels: 2,
            pinned: true,
            stall: Duration::from_secs(20),
        }
    }
}

impl Pair {
    /// Sends `ram` by way of `transport` to `listener`; both ends' outcomes. The source waits, as
    /// it should, until the destination closes the main connection.
    pub fn run(
        &self,
        ram: &RamMap,
        transport: &SocketTransport,
        listener: &mut SocketListener,
    ) -> (Result<Sent, String>, Result<Received, String>) {
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| self.send(ram, transport));
            let received = self.receive(listener);
            (sending.join().unwrap(), received)
        })
    }

    fn send(&self, ram: &RamMap, transport: &SocketTransport) -> Result<Sent, String> {
        let options =
            SendOptions::default().sender(SenderConfig::default().channels(self.channels));
        let cancel = options.sender.common.cancel.clone();
        let snapshot = Snapshot::of_ram(ram.clone());
        let sent = OutgoingMigration::connect(transport, &cancel).and_then(|mut migration| {
            let sent = migration.send(&snapshot, &Plain, transport, options)?;
            migration.finish(Duration::from_secs(20))?;
            Ok(sent)
        });
        sent.map_err(|error| error.to_string())
    }

    fn receive(&self, listener: &mut SocketListener) -> Result<Received, String> {
        let options = ReceiveOptions::default()
            .channels(self.pinned.then_some(self.channels))
            .progress(Arc::new(Progress::new(self.stall)));
        receive_from(listener, options)
    }
}

/// Receives a migration that comes to `listener`, and accepts it.
///
/// # Errors
/// What went wrong, in words.
pub fn receive_from(
    listener: &mut SocketListener,
    options: ReceiveOptions,
) -> Result<Received, String> {
    let cancel = options.engine.common.cancel.clone();
    let received = IncomingMigration::wait(listener, &cancel).and_then(|mut migration| {
        let received = migration.receive(listener, options)?;
        migration.accept()?;
        Ok(received)
    });
    received.map_err(|error| error.to_string())
}
