// The Vercel AI SDK, over /v1/responses and chat: a tool loop, a second turn, and a stream. node vercel.mjs URL
import { generateText, streamText, tool, stepCountIs } from 'ai'; import { createOpenAI } from '@ai-sdk/openai'; import { z } from 'zod';
const openai = createOpenAI({baseURL: process.argv[2], apiKey: 'x'});
const weather = tool({description:'Gets the weather in a city.',inputSchema:z.object({city:z.string()}),execute:async()=>({temperature:7,sky:'sunny'})});
for (const [name, m] of Object.entries({responses: openai('demo-gpt-oss'), chat: openai.chat('demo-gpt-oss')})) {
  const ask = {model:m,tools:{get_weather:weather},stopWhen:stepCountIs(4),prompt:'What is the weather in Rome?',maxRetries:0};
  const first = await generateText(ask);
  console.log(name, first.text);
  const again = await generateText({...ask, prompt: undefined, messages: [{role:'user',content:ask.prompt}, ...first.response.messages, {role:'user',content:'What is the weather in Oslo?'}]});
  console.log(name, 'second turn:', again.text);
  const s = streamText(ask); let text = ''; for await (const part of s.textStream) text += part; console.log(name, 'stream:', text);
}
