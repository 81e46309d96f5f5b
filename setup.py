from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="spanwise",
    # The import package `kernels` shares its name with a distribution that transformers looks for in versions 0.18.2 to
    # 0.19: stay outside that range.
    version="0.1.0",
    description="Distils a large tool-using teacher into a small GQA student, with supervision on the spans that decide tool use",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["kd", "kd.*", "kernels", "kernels.*", "launch", "launch.*"]),
    install_requires=[
        "torch>=2.8",
        "triton>=3.4; platform_system == 'Linux'",
        "transformers>=5.17",
        "accelerate>=1.15",
        "deepspeed>=0.19.8",
        "numpy>=1.26",
        "safetensors>=0.5",
        "pydantic>=2.9",
        "PyYAML>=6",
        "json-repair>=0.50",
        "jsonschema>=4.23",
        "tensorboard>=2.17",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "psutil>=5.9",
        "httpx2>=2.9",
        "tenacity>=9",
    ],
    extras_require={
        "data": ["datasets>=3", "backports.zstd>=1.0; python_version < '3.14'"],  # Parquet and Arrow files; zstd files
        "test": ["pytest>=8", "hypothesis>=6.100"],
    },
)
