"""The formulas of the report as MathML, which browsers typeset without a script or a font."""

from __future__ import annotations

from markupsafe import Markup


def _math(body: str) -> Markup:
    return Markup(f'<math displaystyle="true">{body}</math>')


_ADJOINT = "<msub><mi>λ</mi><mrow><mi>t</mi><mo>,</mo><mi>k</mi></mrow></msub>"
_TERM = '<mi>G</mi><mo stretchy="false">(</mo><mi>τ</mi><mo stretchy="false">)</mo>'
_NORM_G = "<mo>‖</mo><mi>G</mi><mo>‖</mo>"

ADJOINT = _math(
    f"{_ADJOINT}<mo>=</mo><msub><mi>g</mi><mi>t</mi></msub><munderover><mo>∏</mo>"
    "<mrow><mi>i</mi><mo>=</mo><mi>k</mi><mo>+</mo><mn>1</mn></mrow><mi>t</mi></munderover><msub><mi>J</mi><mi>i</mi></msub>"
)
SUPPLY = _math(
    '<mi>supply</mi><mo stretchy="false">(</mo><mi>τ</mi><mo stretchy="false">)</mo><mo>=</mo>'
    "<mfrac><mrow><mi>rms</mi><mo>‖</mo><msub><mi>λ</mi><mrow><mi>t</mi><mo>,</mo><mi>t</mi><mo>−</mo><mi>τ</mi></mrow>"
    "</msub><mo>‖</mo></mrow><mrow><mi>rms</mi><mo>‖</mo><msub><mi>λ</mi><mrow><mi>t</mi><mo>,</mo><mi>t</mi></mrow></msub>"
    "<mo>‖</mo></mrow></mfrac>"
)
SHARE = _math(
    f'<mi>share</mi><mo stretchy="false">(</mo><mi>τ</mi><mo stretchy="false">)</mo><mo>=</mo><mfrac><mrow><mo>⟨</mo>'
    f"{_TERM}<mo>,</mo><mi>G</mi><mo>⟩</mo></mrow><mrow><mo>⟨</mo><mi>G</mi><mo>,</mo><mi>G</mi><mo>⟩</mo></mrow></mfrac>"
)
TERM = _math(
    f"{_TERM}<mo>=</mo><munder><mo>∑</mo><mi>t</mi></munder><msub><mi>λ</mi><mrow><mi>t</mi><mo>,</mo><mi>t</mi><mo>−</mo>"
    "<mi>τ</mi></mrow></msub><mfrac><mrow><msup><mo>∂</mo><mo>+</mo></msup><msub><mi>s</mi><mrow><mi>t</mi><mo>−</mo>"
    "<mi>τ</mi></mrow></msub></mrow><mrow><mo>∂</mo><mi>θ</mi></mrow></mfrac>"
)
BIAS = _math(
    '<mi>bias</mi><mo stretchy="false">(</mo><mi>K</mi><mo stretchy="false">)</mo><mo>=</mo><mfrac><mrow><mo>‖</mo>'
    f"<munder><mo>∑</mo><mrow><mi>τ</mi><mo>&gt;</mo><mi>K</mi></mrow></munder>{_TERM}<mo>‖</mo></mrow>"
    f"<mrow>{_NORM_G}</mrow></mfrac>"
)
NOISE = _math(
    '<mi>signal-to-noise</mi><mo stretchy="false">(</mo><mi>τ</mi><mo stretchy="false">)</mo><mo>=</mo>'
    "<mfrac><mrow><msup><mrow><mo>‖</mo><mi>m</mi><mo>‖</mo></mrow><mn>2</mn></msup><mo>−</mo><mi>v</mi><mo>/</mo><mi>B</mi>"
    "</mrow><mrow><mi>v</mi><mo>/</mo><mi>B</mi></mrow></mfrac>"
)
PATHS = _math(
    "<msub><mi>λ</mi><mrow><mi>k</mi><mo>−</mo><mn>1</mn></mrow></msub><mo>=</mo><munder><mo>∑</mo><mi>p</mi></munder>"
    "<msub><mi>λ</mi><mi>p</mi></msub>"
)
TIMESCALE = _math(
    "<mi>timescale</mi><mo>=</mo><mo>−</mo><mn>1</mn><mo>/</mo><mo>⟨</mo><mi>ln</mi>"
    '<mspace width="0.2em"/><mi>carry</mi><mo>⟩</mo>'
)
RESIDUAL = _math(
    f"<mfrac><mrow><mo>‖</mo><munder><mo>∑</mo><mi>τ</mi></munder>{_TERM}<mo>−</mo><mi>G</mi><mo>‖</mo></mrow>"
    f"<mrow>{_NORM_G}</mrow></mfrac>"
)
CANCELLATION = _math(
    f"<mfrac><mrow>{_NORM_G}</mrow><mrow><munder><mo>∑</mo><mi>τ</mi></munder><mo>‖</mo>{_TERM}<mo>‖</mo></mrow></mfrac>"
)
DEMAND = _math(
    '<mi>C</mi><mo stretchy="false">(</mo><mi>τ</mi><mo stretchy="false">)</mo><mo>=</mo><munder><mo>∑</mo><mrow>'
    "<mi>b</mi><mo>,</mo><mi>t</mi></mrow></munder><msub><mover><mi>g</mi><mo>~</mo></mover><mrow><mi>b</mi><mo>,</mo><mi>t</mi></mrow>"
    "</msub><mo>⊗</mo><msub><mover><mi>u</mi><mo>~</mo></mover><mrow><mi>b</mi><mo>,</mo><mi>t</mi><mo>−</mo><mi>τ</mi>"
    "</mrow></msub>"
)
