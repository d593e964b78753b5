//! How much a peer may ask for.

multifd_core::config! {
    /// Limits on what the main channel may announce, checked before anything is allocated.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Limits {
        /// Bytes of guest RAM, over all blocks. Memory is reserved for them, and used only once
        /// pages are written. Default: 64 TiB.
        ram_bytes: u64 = 64 << 40,
        /// RAM blocks. Default: 4096.
        blocks: usize = 4096,
        /// Bytes of everything after the RAM: device sections and the description of them. Default:
        /// 256 MiB.
        tail_bytes: u64 = 256 << 20,
        /// Bytes of the description alone; QEMU's has some tens of thousands. Default: 4 MiB.
        vmdesc_bytes: usize = 4 << 20,
        /// Bytes of the machine's name. Default: 4096.
        machine_name: u32 = 4096,
    }
}
