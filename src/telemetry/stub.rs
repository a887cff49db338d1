use anyhow::Result;
pub struct Metrics;
impl Metrics {
    pub fn open(_: &std::path::Path, _: u64) -> Result<Self> {
        Ok(Self)
    }
    pub fn earlier(&self) -> &[serde_json::Value] {
        &[]
    }
    pub fn write(&mut self, _: &serde_json::Value) -> Result<()> {
        Ok(())
    }
}
pub struct TensorBoard;
impl TensorBoard {
    pub fn open(_: &std::path::Path, _: u64) -> Result<Self> {
        Ok(Self)
    }
    pub fn scalar(&mut self, _: u64, _: &str, _: f32) -> Result<()> {
        Ok(())
    }
    pub fn image(&mut self, _: u64, _: &str, _: &crate::io::image::RgbImage, _: &[u8]) -> Result<()> {
        Ok(())
    }
    pub fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
