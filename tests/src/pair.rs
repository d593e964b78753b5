//! Both ends of a migration in this process.

use multifd_core::{CancelHandle, Plain, Progress, RamBlock, RamMap, SenderConfig};
use multifd_qemu::{ReceiveOptions, Received, SendOptions, Sent, Snapshot, receive, send};
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
    /// Sends `ram` by way of `transport` to `listener`; both ends' outcomes. The source waits, as it should, until the destination
    /// closes the main connection.
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
        let cancel = CancelHandle::default();
        let mut main = transport.connect().map_err(|e| e.to_string())?;
        let _guard = cancel.also_unblock(main.unblocker());
        main.abort_on_close(true).map_err(|e| e.to_string())?;
        let options = SendOptions {
            sender: SenderConfig {
                channels: self.channels,
                cancel: cancel.clone(),
                ..SenderConfig::default()
            },
            sync: None,
            zero_pages: None,
            on_start: None,
        };
        let snapshot = Snapshot::of_ram(ram.clone());
        let sent = send(&snapshot, &mut main, &Plain, transport, options);
        let sent = sent.map_err(|e| e.to_string())?;
        main.abort_on_close(false).map_err(|e| e.to_string())?;
        main.end_writing().map_err(|e| e.to_string())?;
        main.wait_closed().map_err(|e| format!("all is sent: {e}"))?;
        Ok(sent)
    }

    fn receive(&self, listener: &mut SocketListener) -> Result<Received, String> {
        let options = ReceiveOptions {
            channels: self.pinned.then_some(self.channels),
            progress: Arc::new(Progress::new(self.stall)),
            ..ReceiveOptions::default()
        };
        receive_from(listener, options)
    }
}

/// Receives a migration that comes to `listener`, as a destination should: what fails ends its other waits, too.
///
/// # Errors
/// What went wrong, in words.
pub fn receive_from(listener: &mut SocketListener, options: ReceiveOptions) -> Result<Received, String> {
    let cancel = options.cancel.clone();
    let _listener_guard = cancel.also_unblock(listener.unblocker());
    let mut main = listener.accept_main().map_err(|e| e.to_string())?;
    main.abort_on_close(true).map_err(|e| e.to_string())?;
    main.end_without_tls(true);
    let _guard = cancel.also_unblock(main.read_unblocker());
    let received = receive(&mut main, listener, options).map_err(|e| e.to_string())?;
    main.abort_on_close(false).map_err(|e| e.to_string())?;
    Ok(received)
}
