use super::common::{Common, common_setters};
use super::values::CpuCapabilities;

/// How CRIU checks what the kernel can do (its category 1: what every dump needs). See the [module](super) for what all options
/// have in common.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct CheckOptions {
    pub(super) common: Common,
}

common_setters!(CheckOptions);

/// How CRIU writes down, or compares, what the processor can do. See the [module](super) for what all options have in common.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct CpuinfoOptions {
    pub(super) common: Common,
    pub(super) cpu_capabilities: Option<CpuCapabilities>,
}

common_setters!(CpuinfoOptions);

impl CpuinfoOptions {
    /// What is written down or compared. Long option `--cpu-cap`. Without it: FPU and INS.
    pub fn cpu_capabilities(mut self, capabilities: CpuCapabilities) -> Self {
        self.cpu_capabilities = Some(capabilities);
        self
    }
}
