// The vectors that the kernels are written with, for every processor: the other headers here have the same functions.
#pragma once

#include "simd/portable_numbers.h"
#include "simd/portable_scales.h"
