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
    /// Bytes of the description alone; QEMU's has some tens of thousands.
    pub vmdesc_bytes: usize,
    /// Bytes of the machine's name.
    pub machine_name: u32,
}

impl Default for Limits {
    /// 64 TiB of RAM in 4096 blocks, 256 MiB of device sections, a description of 4 MiB, 4096 bytes of name.
    fn default() -> Self {
        Self {
            ram_bytes: 64 << 40,
            blocks: 4096,
            tail_bytes: 256 << 20,
            vmdesc_bytes: 4 << 20,
            machine_name: 4096,
        }
    }
}
