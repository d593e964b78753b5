//! How much a peer may ask for.

/// Limits on what the main channel may announce, checked before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of guest RAM, over all blocks. Memory is reserved for them, and used only once pages are written.
    pub ram_bytes: u64,
    /// RAM blocks.
    pub blocks: usize,
    /// Bytes of everything after the RAM: device sections and the description of them.
    pub tail_bytes: u64,
    /// Bytes of the machine's name.
    pub machine_name: u32,
}

impl Default for Limits {
    /// 64 TiB of RAM in 4096 blocks, 1 GiB of device sections, 4096 bytes of name.
    fn default() -> Self {
        Self {
            ram_bytes: 64 << 40,
            blocks: 4096,
            tail_bytes: 1 << 30,
            machine_name: 4096,
        }
    }
}
