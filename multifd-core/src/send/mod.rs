//! The sending engine: one thread a channel, idle channels pull.

mod buffer_queue;
mod config;
mod packet_queue;
mod pool;
mod prepare;
mod queue;
mod sender;
mod sync_scope;
mod worker;

pub use buffer_queue::BufferQueue;
pub use config::SenderConfig;
pub use packet_queue::PacketQueue;
pub use sender::Sender;
pub use sync_scope::SyncScope;
