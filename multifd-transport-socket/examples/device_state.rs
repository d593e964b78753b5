//! A "device" of 64 MiB travels in chunks, queued by a thread of its own, while RAM moves over the
//! same channels.
//!
//! `cargo run -p multifd-transport-socket --example device_state`

use bytes::Bytes;
use multifd_core::{
    ChannelSource, DeviceBuffer, DeviceHandlers, Plain, RamBlock, RamMap, Receiver, ReceiverConfig,
    Sender, SenderConfig, SyncScope,
};
use multifd_transport_socket::{Address, SocketListener, SocketOptions, SocketTransport};
use std::error::Error;
use std::sync::{Arc, Mutex};

type Anything = Box<dyn Error + Send + Sync>;

const CHANNELS: u8 = 4;
const RAM: u64 = 256 << 20;
const DEVICE: usize = 64 << 20;
/// Bytes of one chunk: some less than the 16 MiB a receiver takes unless told otherwise.
const CHUNK: usize = 1 << 20;
const LABEL: &str = "0000:00:03.0/vfio";

fn guest() -> Result<RamMap, Anything> {
    let mut ram = RamMap::new();
    ram.add(RamBlock::anonymous("pc.ram", RAM, 4096)?)?;
    Ok(ram)
}

/// What the device's state is: something that shows a byte in the wrong place.
fn state() -> Bytes {
    (0..DEVICE)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

fn main() -> Result<(), Anything> {
    let source = guest()?;
    for block in source.blocks() {
        for page in (0..RAM / 4096).filter(|page| page % 3 != 0) {
            block.page(page * 4096)?.copy_from(&page.to_be_bytes());
        }
    }
    let loopback: Address = "tcp:127.0.0.1:0".parse()?;
    let listener = SocketListener::bind(&loopback, SocketOptions::default())?;
    let address = listener.address()?;
    let destination = std::thread::spawn(move || receive(listener));

    let transport = SocketTransport::new(address, SocketOptions::default());
    let config = SenderConfig::default().channels(CHANNELS);
    let mut sender = Sender::start(source, &Plain, &transport, &config)?;
    let queue = sender.buffers();
    let device = std::thread::spawn(move || -> Result<(), multifd_core::Error> {
        let state = state();
        for at in (0..DEVICE).step_by(CHUNK) {
            // Chunks are slices of one buffer: nothing is copied. In order, so that the other end
            // can append them.
            queue.queue_in_order(DeviceBuffer {
                label: LABEL.into(),
                instance: 0,
                data: state.slice(at..at + CHUNK),
            })?;
        }
        Ok(())
    });
    sender.queue_range(0, 0, RAM)?;
    sender.sync(SyncScope::Peer)?;
    device
        .join()
        .map_err(|_| "the device's thread panicked")??;
    // What was queued while the first round ended is the second's.
    sender.sync(SyncScope::Peer)?;
    let sent = sender.finish()?.total();
    let (pages, bytes) = destination
        .join()
        .map_err(|_| "the destination panicked")??;
    println!(
        "{} pages, {} zero pages and {} bytes of device state sent; {pages} pages and {bytes} bytes arrived, all of them right",
        sent.normal_pages, sent.zero_pages, sent.buffer_bytes
    );
    Ok(())
}

fn receive(mut listener: SocketListener) -> Result<(u64, u64), Anything> {
    let target = guest()?;
    let arrived = Arc::new(Mutex::new(Vec::with_capacity(DEVICE)));
    let mut handlers = DeviceHandlers::new();
    let device = Arc::clone(&arrived);
    handlers.register(LABEL, move |chunk| {
        let mut device = device
            .lock()
            .map_err(|_| "another chunk's handler panicked")?;
        if device.len() + chunk.data.len() > DEVICE {
            return Err(format!("more than the device's {DEVICE} bytes came").into());
        }
        device.extend_from_slice(&chunk.data);
        Ok(())
    });
    let config = ReceiverConfig::default().device_state(Some(Arc::new(handlers)));
    let mut receiver = Receiver::new(target.clone(), config)?;
    for _ in 0..CHANNELS {
        receiver.attach(listener.next_channel(true)?.ok_or("a channel is missing")?)?;
    }
    receiver.wait_sync()?;
    receiver.wait_sync()?;
    let arrived_counts = receiver.finish()?.total();
    for block in target.blocks() {
        for page in 0..RAM / 4096 {
            let mut number = [0; 8];
            block.page(page * 4096)?.copy_to(&mut number);
            let expected = if page % 3 == 0 {
                [0; 8]
            } else {
                page.to_be_bytes()
            };
            if number != expected {
                return Err(format!("page {page} is wrong").into());
            }
        }
    }
    let device = arrived.lock().map_err(|_| "a handler panicked")?;
    if device.as_slice() != state() {
        return Err("the device's state is wrong".into());
    }
    Ok((arrived_counts.normal_pages, arrived_counts.buffer_bytes))
}
